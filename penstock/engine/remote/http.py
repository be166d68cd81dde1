"""An HTTP client for upstreams that trusts nothing that they send.

In: a path and a body. Out: the response, cut anywhere, or an UpstreamError. Everything is bounded:
the time to connect, the head, the body, the silence. No redirect is followed, and TLS is verified.
Each request has a connection of its own: to close it is how a request is cancelled. Not known here:
what upstreams say.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import NamedTuple, cast

import aiohappyeyeballs
import httptools

from penstock.engine.remote.config import UpstreamConfig
from penstock.engine.remote.failures import GarbageError, RefusedError, UpstreamError

CONNECT_TIMEOUT_S = 5.0
# If an address has not answered after this time, the next one is tried as well (RFC 8305).
NEXT_ADDRESS_S = 0.25
ASK_TIMEOUT_S = 30.0
LEAVE_TIMEOUT_S = 5.0
# Bytes that are no body: the head, the sizes of chunks, trailers.
MAX_OVERHEAD_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# Questions to one upstream at once, other than those for an answer.
MAX_ASKING = 16

_KNOWN = (UpstreamError, RefusedError)
OnBody = Callable[["Exchange", bytes], None]
"""Takes bytes of a response's body, and the exchange that they belong to."""


class Response(NamedTuple):
    """A whole response. `retry_after` has the seconds of its `Retry-After`, 0 without one."""

    status: int
    body: bytes
    retry_after: float


class Exchange(asyncio.Protocol):
    """A request and its response, on one connection.

    `on_body` is called with the bytes of the body, cut anywhere, at most `max_bytes` of them. It
    may raise UpstreamError or RefusedError, which end the exchange. `done` is the end: it raises
    these, and UpstreamError if the response is cut off. `status`, `content_type` and `retry_after`
    (in seconds) are known once `on_body` is called.
    """

    def __init__(self, request: bytes, on_body: OnBody, max_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._request = request
        self._on_body = on_body
        self._room = max_bytes
        self._overhead = 0
        self._is_bounded = False
        """True if the head says how the body ends."""
        self._has_head = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.status = 0
        self.content_type = ""
        self.retry_after = 0.0
        self.heard_at = loop.time()
        """When the upstream last sent its head or a part of the body, on the loop's clock."""
        self.done: asyncio.Future[None] = loop.create_future()
        self.closed = asyncio.Event()
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._fail(cause if isinstance(cause, _KNOWN) else _no_http())
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(_no_http())
        if not self._overhead:
            self.heard_at = self._loop.time()
        if self._overhead > MAX_OVERHEAD_BYTES:
            self._fail(GarbageError("its response has an endless head"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:  # it comes after the body
            return
        lowered = name.lower()
        if lowered == b"content-type":
            self.content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif lowered == b"retry-after":
            self.retry_after = seconds_of(value)
        elif lowered in (b"content-length", b"transfer-encoding"):
            self._is_bounded = True
        elif lowered == b"content-encoding" and value.lower() != b"identity":
            raise GarbageError("its response is compressed, although Penstock does not ask for it")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # another head follows
            self.content_type, self._is_bounded = "", False
            return
        if 300 <= status < 400:
            raise GarbageError(f"it redirects (HTTP {status}); redirects are not followed")
        self.status = status
        self._has_head = True
        self._overhead = 0

    def on_body(self, data: bytes) -> None:
        self._overhead = 0
        self._room -= len(data)
        if self._room < 0:
            raise GarbageError("its response is too long")
        self._on_body(self, data)

    def on_message_complete(self) -> None:
        if self._has_head:
            self.finish()

    def finish(self) -> None:
        """End the exchange: nothing more of the response is needed."""
        if not self.done.done():
            self.done.set_result(None)

    def finish_within(self, seconds: float) -> None:
        """End the exchange after so many seconds, even if the response is not complete then."""
        if self._end is None:
            self._end = self._loop.call_later(seconds, self.finish)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        if self._has_head and not self._is_bounded and exc is None:
            self.finish()
        self._fail(UpstreamError("it cut the connection"))

    async def until_done(self, silence: float) -> None:
        """Wait for the end. Raises UpstreamError after `silence` seconds without a byte."""
        while not self.done.done():
            left = self.heard_at + silence - self._loop.time()
            if left <= 0:
                raise UpstreamError(f"it has been silent for {silence:g} s")
            await asyncio.wait({self.done}, timeout=left)
        self.done.result()

    async def leave(self, *, gently: bool = False) -> None:
        """Close the connection.

        With `gently`, send the end and wait until the upstream has closed it too, a few seconds at
        most: llama.cpp's server has then dropped the request.
        """
        self.done.cancel()
        if self._end is not None:
            self._end.cancel()
        transport = self._transport
        if transport is None:
            return
        if gently and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await self.closed.wait()
        transport.abort()

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # nobody may be waiting for it any more
        if self._transport is not None:
            self._transport.abort()


class HttpClient:
    """Sends requests to one upstream."""

    def __init__(self, config: UpstreamConfig) -> None:
        self._config = config
        self._asking = asyncio.Semaphore(MAX_ASKING)
        host = config.name.partition("#")[0].split("://", 1)[1].removesuffix(config.prefix)
        key = f"Authorization: Bearer {config.key}\r\n" if config.key else ""
        self._head = (
            f"HTTP/1.1\r\nHost: {host}\r\n{key}User-Agent: penstock\r\nConnection: close\r\n"
            "Accept-Encoding: identity\r\nContent-Type: application/json\r\nContent-Length: "
        )

    async def ask(
        self, path: str, body: bytes | None = None, *, timeout: float = ASK_TIMEOUT_S
    ) -> Response:
        """Return a whole response. Raises UpstreamError."""
        answer = bytearray()

        def on_body(_: Exchange, data: bytes) -> None:
            answer.extend(data)

        async with self._asking:
            try:
                async with asyncio.timeout(timeout):
                    exchange = await self.open(path, body, on_body, MAX_ANSWER_BYTES)
                    try:
                        await exchange.until_done(timeout)
                    finally:
                        await exchange.leave()
            except TimeoutError:
                raise UpstreamError(f"it did not answer within {timeout:g} s") from None
        return Response(exchange.status, bytes(answer), exchange.retry_after)

    async def open(
        self, path: str, body: bytes | None, on_body: OnBody, max_bytes: int
    ) -> Exchange:
        """Send a request: a GET without a body, otherwise a POST. Raises UpstreamError."""
        config, loop = self._config, asyncio.get_running_loop()
        method = "GET" if body is None else "POST"
        head = f"{method} {config.prefix}{path} {self._head}{len(body or b'')}\r\n\r\n"
        request = head.encode("ascii") + (body or b"")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, exchange = await loop.create_connection(
                    lambda: Exchange(request, on_body, max_bytes),
                    sock=await self._connect(),
                    ssl=config.tls,
                    server_hostname=config.host if config.tls else None,
                )
        except TimeoutError:
            raise UpstreamError("it cannot be reached in time", began=False) from None
        except OSError as error:
            raise UpstreamError(
                f"it cannot be reached ({_reason_of(error)})", began=False
            ) from None
        return exchange

    async def _connect(self) -> socket.socket:
        """Return a connection to the first of the upstream's addresses that takes one."""
        loop, config = asyncio.get_running_loop(), self._config
        found = await loop.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        return await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_S)


def seconds_of(retry_after: bytes) -> float:
    """Return the seconds of a `Retry-After` (RFC 9110, section 10.2.3); 0 if it cannot be read."""
    text = retry_after.decode("latin-1").strip()
    try:
        if text.isdecimal():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _reason_of(error: OSError) -> str:
    """Return why there is no connection; nothing that the upstream wrote."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # OpenSSL's words: "certificate has expired", for example.
        return f"{error.verify_message}: name the right ca in its table, or renew its certificate"
    if isinstance(error, ssl.SSLError):
        return "it speaks no TLS that Penstock accepts: if it serves plain HTTP, write http://"
    return type(error).__name__


def _no_http() -> GarbageError:
    return GarbageError("its response is not HTTP")
