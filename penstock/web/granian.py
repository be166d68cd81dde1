"""Granian, embedded on a socket that is already ours.

The one file that leans on Granian's private parts (hence its upper bound in pyproject.toml): its
server insists on making its own socket, and stops by an event.
"""

import asyncio
import logging
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server
from starlette.types import ASGIApp

from penstock.errors import StartError

log = logging.getLogger(__name__)
logging.getLogger("_granian").setLevel(logging.WARNING)

HEADER_TIMEOUT_S = 10
# Past this a request's head is answered 431, at the library's next read: some of 100 KiB pass. Less
# than 8 KiB it does not take.
MAX_HEAD_BYTES = 64 * 1024
# The kernel takes so much for a client that does not read, and then twice that. Its own choice is
# megabytes: minutes of tokens, before anybody could notice.
SEND_BUFFER_BYTES = 32 * 1024


# An HTTP/2 client that does not answer a ping in 20 seconds is gone.
HTTP2_PING_S = 20
# How often files of a certificate are looked at.
CERTIFICATE_CHECK_S = 2.0


@dataclass(frozen=True)
class Tls:
    """The files of a certificate (with those it is signed with) and of its key, both PEM."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raises OSError (ssl.SSLError is one) where they do not serve."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key, password="")  # rather than ask for one

    def version(self) -> tuple[int, ...]:
        """What is different when a file is; 0 for one that is not there."""
        version: list[int] = []
        for path in (self.certificate, self.key):
            try:
                status = path.stat()
            except OSError:
                version += (0, 0)
            else:
                version += (status.st_mtime_ns, status.st_ino)
        return tuple(version)


class GranianServer(Server):
    """Serves `app` on `listener`, which stays open, until `stop`."""

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
            # Where it may be either, a silent connection outlives the timeout for headers.
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
        holder: Any = SocketHolder  # its stub knows nothing of its arguments
        self._shd = holder(descriptor, False, self.backlog)


class Web:
    """Serves an application on `listener`; with TLS always with the certificate that there is now.

    TLS speaks HTTP/1.1 and HTTP/2, whichever the client asks for (ALPN).
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
            except OSError as error:  # perhaps only one of the two is new yet
                log.error("the certificate stays as it was: %s", _reason(error))
                continue
            # On the same socket, so that no connection is refused between the two.
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


def _reason(error: OSError) -> str:
    """Why, without a path."""
    if isinstance(error, ssl.SSLError):
        return "the certificate and the key are no pair of PEM files without a password"
    return error.strerror or type(error).__name__


def tls_of(certificate: str, key: str) -> Tls | None:
    """TLS with these files, or none where there are none. Raises StartError."""
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise StartError(
            "TLS needs a certificate and its key.", "Give both: --tls-cert FILE --tls-key FILE"
        )
    tls = Tls(Path(certificate), Path(key))
    try:
        tls.check()
    except OSError as error:
        raise StartError(
            f"The certificate cannot be used: {_reason(error)}.",
            "--tls-cert is a PEM file with the certificate and those that it is signed with,"
            " --tls-key one with its key.",
        ) from None
    return tls


def listen(host: str, port: int, backlog: int, give_up_after: float) -> socket.socket:
    """A listening TCP socket. Raises OSError.

    Accepted sockets inherit what is set here. `give_up_after`: seconds after which the kernel
    drops a connection whose peer takes nothing, be it stalled or vanished (Linux only).
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Else a token waits up to 40 ms for the client to acknowledge the one before (Nagle's
        # algorithm against delayed acknowledgements).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(give_up_after * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
