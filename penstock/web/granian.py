"""The HTTP server: Granian, embedded on a socket that we opened.

Only this file uses Granian's private parts, so pyproject.toml bounds its version: Granian's server
insists on making its own socket and on opening TLS's files itself, and an event stops it.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server
from starlette.types import ASGIApp, Receive, Send

from penstock.supervision import end_process, keep
from penstock.web.granian_watch import GranianWatch
from penstock.web.http1.server import Timeouts
from penstock.web.peer import Listener
from penstock.web.tls import Pair, Tls, UnservableError

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
# More files than Granian opens to begin: it ends the whole process if it cannot open one.
FILES_TO_BEGIN = 32


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

    __slots__ = ("_listener", "_receive", "_send", "_task", "_waiting", "_watch")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._listener: Listener | None = None

    def write(self, data: bytes, is_last: bool) -> bool:
        """Write part of the body."""
        try:
            sent = self._send(
                {"type": "http.response.body", "body": data, "more_body": not is_last}
            )
        except Exception:
            self._give_up()
            return False
        if not _must_wait[type(sent)]:
            return True
        self._waiting = asyncio.ensure_future(self._wait_for(sent))
        return False

    async def _wait_for(self, sent: Awaitable[None]) -> None:
        try:
            await sent
        except Exception:
            self._give_up()
            return
        if self._listener is not None:
            self._listener.client_took()

    def _give_up(self) -> None:
        log.debug("a write failed")
        self.abort()

    def write_rest(self, data: bytes) -> bool:
        """Never called: there is no descriptor."""
        raise NotImplementedError

    def tell(self, listener: Listener | None) -> None:
        """Tell this listener what the client does. The request's body must have been read.

        To Granian, a client that has finished sending is gone.
        """
        self._listener = listener
        if listener is None and self._watch is not None:
            self._watch.cancel()
            self._watch = None  # another listener may come
        elif listener is not None and self._watch is None:
            self._watch = asyncio.create_task(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._listener is not None:
            self._listener.client_gone()

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
    """Serves `app` on `listener` until `stop`; the listener stays open.

    `tls` are the paths of a certificate and its key, which must stay there while it serves. If
    Granian cannot use them, it ends the whole process (see `Pair.check`).
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        max_connections: int,
        *,
        http2: bool,
        tls: tuple[str, str] | None = None,
    ) -> None:
        self._tls_files = tls
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
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
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._listener = listener

    def build_ssl_context(self, *arguments: Any) -> None:
        """Note the files of TLS. Granian's own method would first load them with OpenSSL."""
        certificate, key = self._tls_files or (None, None)
        minimum = str(arguments[3])
        self.ssl_ctx: Any = (bool(key), certificate, key, None, minimum, None, [], False)

    def _init_shared_socket(self) -> None:
        self._descriptor = os.dup(self._listener.fileno())  # Granian closes it when it stops
        holder: Any = SocketHolder  # its type stub lacks the arguments
        self._shd = holder(self._descriptor, False, self.backlog)

    def accept_no_more(self) -> None:
        """Leave new connections to another server on `listener`, and serve those that are here.

        Granian has no such state: stopped, it cuts off each TLS handshake that is under way. So its
        descriptor becomes that of a socket to which nobody connects.
        """
        with _unused_listener() as unused:
            os.dup2(unused.fileno(), self._descriptor, inheritable=False)


@contextlib.contextmanager
def _unused_listener() -> Iterator[socket.socket]:
    """Yield a socket that listens where nobody connects."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(socket.socket(socket.AF_UNIX))
        if sys.platform == "linux":
            made.bind("")  # the kernel chooses a name, in no folder: a full disk is no matter
        else:
            made.bind(f"{stack.enter_context(tempfile.TemporaryDirectory())}/unused")
        made.listen()
        made.setblocking(False)
        yield made


class GranianServers:
    """Serves an application on `listener`; with TLS, always with the current certificate.

    `pair` is what the files of `tls` hold at the beginning: it can be served. TLS offers HTTP/1.1
    and HTTP/2; the client chooses (ALPN). Connections of clients for whose address `trusts` returns
    True are not counted towards its share.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        max_connections: int,
        timeouts: Timeouts,
        trusts: Callable[[str], bool],
        *,
        http2: bool = False,
        tls: Tls | None = None,
        pair: Pair | None = None,
    ) -> None:
        self._watch = GranianWatch(app, listener, max_connections, timeouts, trusts)
        self._listener = listener
        self._max_connections = max_connections
        self._http2 = http2 or tls is not None
        self._tls = tls
        self._pair = pair

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set and every open response has ended."""
        watching = keep("TLS deadlines", self._watch.run)
        servers = [self._begin()]
        loop = asyncio.get_running_loop()
        try:
            async for pair in self._new_pairs(stop):
                self._pair = pair
                old, _ = servers[-1]
                old.accept_no_more()  # who comes now waits in the socket's queue
                servers.append(self._begin())
                loop.call_later(self._watch.first_request_s, old.stop)
                servers = [each for each in servers if not each[1].done()]
                log.info("serving with a new certificate")
            self._listener.close()
            for server, _ in servers:
                server.stop()  # type: ignore[no-untyped-call] # it has no annotations
            await asyncio.gather(*(running for _, running in servers))
        finally:
            watching.cancel()

    async def _new_pairs(self, stop: asyncio.Event) -> AsyncIterator[Pair]:
        """Yield a new certificate and its key when their files change and they can be served."""
        tls = self._tls
        version = tls.version() if tls else ()
        while not await _is_set_within(stop, CERTIFICATE_CHECK_S if tls else None):
            assert tls is not None
            if (now := tls.version()) == version:
                continue
            version = now
            try:
                pair = tls.read()
                await pair.check()
                _check_room_for_files()
            except UnservableError as error:  # perhaps only one of the two files is new yet
                log.error("keeping the old certificate: %s", error, extra=_hint(error))
            except OSError as error:  # not the certificate's fault, so try it again
                log.error("the new certificate cannot be tried: %s", error.strerror or "too slow")
                version = ()
            else:
                yield pair

    def _begin(self) -> tuple[GranianServer, asyncio.Task[None]]:
        files = contextlib.ExitStack()
        paths = files.enter_context(self._pair.files()) if self._pair else None
        server = GranianServer(
            self._watch, self._listener, self._max_connections, http2=self._http2, tls=paths
        )
        running = asyncio.create_task(server.serve())
        running.add_done_callback(lambda _: files.close())
        running.add_done_callback(_end_if_failed)
        return server, running


def _end_if_failed(running: asyncio.Task[None]) -> None:
    """End the process if a server of Granian's has failed: nobody would be answered any more."""
    if not running.cancelled() and (error := running.exception()) is not None:
        log.error("Granian's server failed", exc_info=error)
        end_process("the HTTP server has ended")


def _hint(error: UnservableError) -> dict[str, Any]:
    return {"fields": {"hint": error.hint}}


def _check_room_for_files() -> None:
    """Raise OSError if this process cannot open some more files."""
    with contextlib.ExitStack() as stack:
        for _ in range(FILES_TO_BEGIN):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


async def _is_set_within(event: asyncio.Event, timeout: float | None) -> bool:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True
