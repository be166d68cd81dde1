"""The HTTP server: Granian, embedded on a socket that we opened.

Only this file uses Granian's private parts, so pyproject.toml bounds its version: Granian's server
insists on making its own socket, and an event stops it.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server
from starlette.types import ASGIApp, Receive, Send

from penstock.web.tls import Tls, reason_of

log = logging.getLogger(__name__)
logging.getLogger("_granian").setLevel(logging.WARNING)

HEADER_TIMEOUT_S = 10
# A larger request head gets 431 at Granian's next read, so some heads of 100 KiB pass. Granian's
# minimum is 8 KiB.
MAX_HEAD_BYTES = 64 * 1024
# An HTTP/2 client that does not answer a ping within this time is gone.
HTTP2_PING_S = 20
# How often the certificate's files are checked for changes.
CERTIFICATE_CHECK_S = 2.0


class _MustWait(dict[type, bool]):
    """Maps the kinds of awaitables that `send` returns to whether they must be awaited.

    Granian returns a future only if it has to wait for the client. A coroutine has not even begun.
    """

    def __missing__(self, kind: type) -> bool:
        is_future = hasattr(kind, "_asyncio_future_blocking")  # asyncio's own test for futures
        self[kind] = is_future or issubclass(kind, Coroutine)
        return self[kind]


_must_wait = _MustWait()


class GranianPeer:
    """The client of a request that Granian serves (see `peer.Peer`)."""

    descriptor = -1
    holds_task = True

    __slots__ = ("_on_gone", "_on_taken", "_receive", "_send", "_task", "_waiting", "_watch")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._on_taken: Callable[[], None] | None = None
        self._on_gone: Callable[[], None] | None = None

    def write(self, data: bytes, is_last: bool) -> bool:
        """Write part of the body."""
        sent = self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        if not _must_wait[type(sent)]:
            return True
        self._waiting = asyncio.ensure_future(self._wait_for(sent))
        return False

    async def _wait_for(self, sent: Awaitable[None]) -> None:
        try:
            await sent
        except Exception:
            log.debug("a write failed")
            self.abort()
            return
        if self._on_taken is not None:
            self._on_taken()

    def write_rest(self, data: bytes) -> bool:
        """Never called: there is no descriptor."""
        raise NotImplementedError

    def when_taken(self, call: Callable[[], None]) -> None:
        """Call this whenever waiting data was taken."""
        self._on_taken = call

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Call this when the client has disconnected. The request's body must have been read."""
        self._on_gone = call
        if call is None and self._watch is not None:
            self._watch.cancel()
        elif call is not None and self._watch is None:
            self._watch = asyncio.create_task(self._wait_for_disconnect())

    def when_half_closed(self, call: Callable[[], None] | None) -> None:
        """Do nothing: to Granian, a client that has finished sending is gone."""

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._on_gone is not None:
            self._on_gone()

    def take_whole_body(self) -> bytes | None:
        """Return None: the body comes through ASGI."""
        return None

    def abort(self) -> None:
        """End the task that responds; Granian then cuts the response off."""
        if self._waiting is not None:
            self._waiting.cancel()
        if self._task is not None:
            self._task.cancel()


class GranianServer(Server):
    """Serves `app` on `listener` until `stop`; the listener stays open."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        max_connections: int,
        *,
        http2: bool,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            # In mode `auto`, a silent connection outlives the timeout for headers.
            http=HTTPModes.auto if http2 else HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=HEADER_TIMEOUT_S * 1000, max_buffer_size=MAX_HEAD_BYTES
            ),
            http2_settings=HTTP2Settings(
                keep_alive_interval=HTTP2_PING_S * 1000, max_headers_size=MAX_HEAD_BYTES
            ),
            websockets=False,
            backpressure=max_connections,
            log_enabled=False,
            ssl_cert=tls.certificate if tls else None,
            ssl_key=tls.key if tls else None,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        descriptor = os.dup(self._listener.fileno())  # Granian closes it when it stops
        holder: Any = SocketHolder  # its type stub lacks the arguments
        self._shd = holder(descriptor, False, self.backlog)


class GranianServers:
    """Serves an application on `listener`; with TLS, always with the current certificate.

    TLS offers HTTP/1.1 and HTTP/2; the client chooses (ALPN).
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        max_connections: int,
        *,
        http2: bool = False,
        tls: Tls | None = None,
    ) -> None:
        self._app = app
        self._listener = listener
        self._max_connections = max_connections
        self._http2 = http2 or tls is not None
        self._tls = tls

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set and every open response has ended."""
        version = self._tls.version() if self._tls else ()
        servers = [self._begin()]
        while not await _is_set_within(stop, CERTIFICATE_CHECK_S if self._tls else None):
            assert self._tls is not None
            if (now := self._tls.version()) == version:
                continue
            version = now
            try:
                self._tls.check()
            except OSError as error:  # perhaps only one of the two files is new yet
                log.error("keeping the old certificate: %s", reason_of(error))
                continue
            # On the same socket, so that no connection is refused between the two servers.
            servers.append(self._begin())
            servers[-2][0].stop()  # type: ignore[no-untyped-call] # it has no annotations
            servers = [each for each in servers if not each[1].done()]
            log.info("serving with a new certificate")
        self._listener.close()
        servers[-1][0].stop()  # type: ignore[no-untyped-call] # it has no annotations
        await asyncio.gather(*(running for _, running in servers))

    def _begin(self) -> tuple[GranianServer, asyncio.Task[None]]:
        server = GranianServer(
            self._app, self._listener, self._max_connections, http2=self._http2, tls=self._tls
        )
        return server, asyncio.create_task(server.serve())


async def _is_set_within(event: asyncio.Event, timeout: float | None) -> bool:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True
