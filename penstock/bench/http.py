"""HTTP/1.1 for many streams at once, as cheap as Python has it.

In: requests as bytes. Out: to each request's receiver the head and the pieces of the body, each
piece with the time at which it came from the socket. Connections are kept and used again. Not known
here: what is in a body.

Every piece goes from the event loop through httptools (C) to the receiver in one call, with no task
woken on the way: what a client spends on a token is what it cannot measure any more
(docs/dependencies.md has the figures).
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from penstock import __version__

Clock = Callable[[], float]
DEFAULT_PORTS = {"http": 80, "https": 443}


class NotHttpError(ConnectionError):
    """What answers does not speak HTTP/1.1."""


class _StaleError(ConnectionError):
    """The server had closed a kept connection before it saw the request."""


class Receiver(Protocol):
    """Who asked. `complete` comes last, and only where the body came to its end."""

    def head(self, status: int, headers: dict[str, str]) -> None:
        """The status and the headers, their names in lower case."""

    def piece(self, data: bytes, now: float) -> None:
        """A piece of the body, and when it came."""

    def complete(self, now: float) -> None:
        """The body has ended as its framing says."""


class Server:
    """A server by its base URL: makes requests and sends them.

    A URL without a path gets `/v1`. Raises ValueError for what is no URL.
    """

    def __init__(self, url: str, api_key: str | None, clock: Clock) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"not a URL: {error}") from None
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname or not url.isprintable():
            raise ValueError("the URL must be like http://127.0.0.1:8000")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a key goes into PENSTOCK_API_KEY, not into the URL")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key has characters that no header can hold")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        host += f":{port}" if port and port != DEFAULT_PORTS[parts.scheme] else ""
        path = parts.path.rstrip("/") or "/v1"
        self.url = f"{parts.scheme}://{host}{path}"
        self.is_local = parts.hostname == "localhost" or parts.hostname.startswith("127.")
        self._path, self._query = path, f"?{parts.query}" if parts.query else ""
        self._name = parts.hostname
        self._port = port or DEFAULT_PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address: str | None = None
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._clock = clock
        self._headers = f"Host: {host}\r\nUser-Agent: penstock-bench/{__version__}\r\n"
        if api_key:
            self._headers += f"Authorization: Bearer {api_key}\r\n"

    def get(self, route: str) -> bytes:
        """A request for what is at a route."""
        return self._head("GET", route, "Accept: application/json\r\n")

    def post(self, route: str, body: bytes) -> bytes:
        """A request with a body of JSON, for an answer that is a stream of events."""
        headers = (
            "Content-Type: application/json\r\nAccept: text/event-stream, application/json\r\n"
            f"Accept-Encoding: identity\r\nContent-Length: {len(body)}\r\n"
        )
        return self._head("POST", route, headers) + body

    def _head(self, method: str, route: str, headers: str) -> bytes:
        first = f"{method} {self._path}{route}{self._query} HTTP/1.1\r\n"
        return (first + self._headers + headers + "\r\n").encode("latin-1")

    async def ask(self, request: bytes, receiver: Receiver) -> None:
        """Send a request and return when its body has ended.

        Raises OSError (no connection, TLS, one that was cut). Cancelled, it drops the connection.
        """
        while self._idle:
            connection = self._idle.pop()
            with contextlib.suppress(_StaleError):
                await self._exchange(connection, request, receiver)
                return
        await self._exchange(await self._connect(), request, receiver)

    async def _exchange(
        self, connection: "_Connection", request: bytes, receiver: Receiver
    ) -> None:
        if await connection.exchange(request, receiver):
            self._idle.append(connection)

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        if self._address is not None:
            return await self._connect_to(self._address)
        # Looked up once: a resolver's thread for each connection would be the client's own delay.
        found = await loop.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        for address in addresses:
            try:
                connection = await self._connect_to(address)
            except OSError:
                if address == addresses[-1]:
                    raise
            else:
                self._address = address
                return connection
        raise OSError(f"{self._name} has no address")

    async def _connect_to(self, address: str) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._clock),
            address,
            self._port,
            ssl=self._tls,
            server_hostname=self._name if self._tls else None,
        )
        self._open.add(connection)
        connection.lost.add_done_callback(lambda _: self._open.discard(connection))
        return connection

    async def close(self) -> None:
        """Close every connection, and return when they are closed."""
        lost = [connection.lost for connection in self._open]
        for connection in list(self._open):
            connection.abort()
        await asyncio.gather(*lost)


class _Connection(asyncio.Protocol):
    """One connection: one request at a time. The names of half of its methods are httptools'."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now = 0.0
        self._is_open = False
        self._is_new = True
        self._done: asyncio.Future[bool] | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def exchange(self, request: bytes, receiver: Receiver) -> bool:
        """Send, and wait for the body's end. Can the connection be used again?"""
        if not self._is_open:
            raise _StaleError
        self._receiver = receiver
        self._headers: dict[str, str] = {}
        self._has_received = False
        self._parser = httptools.HttpResponseParser(self)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._done = done
        self._transport.write(request)
        try:
            return await done
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._done = None
            self._is_new = False

    def abort(self) -> None:
        self._transport.abort()

    # The event loop calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        self._now = self._clock()
        self._has_received = True
        if self._done is None:  # nobody has asked for it
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._done.done():
                self._done.set_exception(_cause(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        self.lost.set_result(None)
        done = self._done
        if done is None or done.done():
            return
        if not self._has_received and not self._is_new:
            done.set_exception(_StaleError())
        elif exc is None and self._ends_with_connection():
            self._receiver.complete(self._clock())
            done.set_result(False)
        else:
            done.set_exception(ConnectionResetError("the connection ended before the answer did"))

    def _ends_with_connection(self) -> bool:
        has_length = "content-length" in self._headers or "transfer-encoding" in self._headers
        return bool(self._headers) and not has_length

    # The parser calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # else it is only the announcement of a head
            self._receiver.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        self._receiver.piece(data, self._now)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            self._headers.clear()
            return
        self._receiver.complete(self._now)
        if self._done is not None and not self._done.done():
            self._done.set_result(self._parser.should_keep_alive())


def _cause(error: httptools.HttpParserError) -> BaseException:
    """Of an error in one of our own methods, that one; else that this is no HTTP."""
    if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
        return error.__context__
    return NotHttpError("what answers does not speak HTTP/1.1")
