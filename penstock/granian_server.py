"""Granian, embedded on a socket that is already ours.

The one file that leans on Granian's private parts (hence its upper bound in pyproject.toml): its
server insists on making its own socket, and stops by an event.
"""

import asyncio
import logging
import socket
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server
from starlette.types import ASGIApp

logging.getLogger("_granian").setLevel(logging.WARNING)

HEADER_TIMEOUT_S = 10
# Rust's HTTP library keeps no less than 8 KiB; past this a request's head is answered 431.
MAX_HEAD_BYTES = 64 * 1024
# The kernel takes so much for a client that does not read, and then twice that. Its own choice is
# megabytes: minutes of tokens, before anybody could notice.
SEND_BUFFER_BYTES = 32 * 1024


class GranianServer(Server):
    """Serves `app` on `listener` until `stop`; `closed` is set when the last response is out."""

    def __init__(
        self, app: ASGIApp, listener: socket.socket, max_connections: int, *, http2: bool
    ) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            # Where it may be either, a silent connection outlives the timeout for headers.
            http=HTTPModes.auto if http2 else HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=HEADER_TIMEOUT_S * 1000, max_buffer_size=MAX_HEAD_BYTES
            ),
            websockets=False,
            backpressure=max_connections,
            log_enabled=False,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        descriptor = self._listener.detach()  # Granian closes it when it stops
        holder: Any = SocketHolder  # its stub knows nothing of its arguments
        self._shd = holder(descriptor, False, self.backlog)


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


async def serve_until(server: GranianServer, stop: asyncio.Event) -> None:
    """Run `server` until `stop` is set and every open response has ended."""
    running = asyncio.create_task(server.serve())
    await stop.wait()
    server.stop()  # type: ignore[no-untyped-call] # it has no annotations
    await running
