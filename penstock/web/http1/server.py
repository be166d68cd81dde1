"""Serves plain HTTP/1.1 on a listening socket: accepts connections and watches their deadlines.

One timer looks at the deadlines of all connections, so that a request costs no timer of its own.
"""

import asyncio
import collections
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from penstock.web.http1 import response
from penstock.web.http1.connection import Connection

HEAD_TIMEOUT_S = 10.0
TICK_S = 1.0


@dataclass(frozen=True)
class Timeouts:
    """How long a client may take, in seconds.

    `head` is for a whole head, from the connection's beginning or from the head's first byte.
    `keep_alive` is for the next request of a connection. `stall` is for a client that takes
    nothing of a response.
    """

    head: float = HEAD_TIMEOUT_S
    keep_alive: float = 75.0
    stall: float = 30.0


class Http1Server:
    """Serves `app` on `listener`. At most `max_connections` connections are served at once.

    A client for whose address `trusts` returns True may use the PROXY protocol.
    Further connections wait: the first few of them unread, the rest in the kernel's queue.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        max_connections: int,
        timeouts: Timeouts | None = None,
        trusts: Callable[[str], bool] = lambda address: False,
    ) -> None:
        self.app = app
        self.trusts = trusts
        self.timeouts = timeouts or Timeouts()
        self.date = response.date_line(time.time())
        self.is_closing = False
        """True once connections end with their response."""
        self._listener = listener
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._waiting: collections.deque[Connection] = collections.deque()
        self._accepting: asyncio.Server | None = None
        self._changing: asyncio.Task[None] | None = None
        self._all_closed = asyncio.Event()

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set and every response has ended."""
        await self._accept()
        ticking = asyncio.create_task(self._tick())
        try:
            await stop.wait()
            self.is_closing = True
            self._stop_accepting()
            self._listener.close()
            for connection in [*self._connections, *self._waiting]:
                connection.close_if_idle()
            while self._connections or self._waiting:
                self._all_closed.clear()
                await self._all_closed.wait()
        finally:
            ticking.cancel()
            self._stop_accepting()
            for connection in [*self._connections, *self._waiting]:
                connection.abort()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        # The server closes its socket when it stops accepting; the listener stays open.
        self._accepting = await loop.create_server(
            lambda: Connection(self), sock=self._listener.dup(), backlog=self._max_connections
        )

    def _stop_accepting(self) -> None:
        if self._accepting is not None:
            self._accepting.close()
            self._accepting = None

    async def _tick(self) -> None:
        """Close the connections whose deadlines have passed, for ever."""
        timeouts = self.timeouts
        tick = min(TICK_S, timeouts.head / 4, timeouts.keep_alive / 4, timeouts.stall / 4)
        while True:
            await asyncio.sleep(tick)
            self.date = response.date_line(time.time())
            now = time.monotonic()
            for connection in [each for each in self._connections if each.deadline < now]:
                connection.time_out()

    # Reports of connections.

    def opened(self, connection: Connection) -> None:
        """Serve a new connection, or let it wait if there are too many."""
        if len(self._connections) < self._max_connections:
            self._connections.add(connection)
            connection.begin_reading()
            return
        connection.wait_for_room()
        self._waiting.append(connection)
        # Not at once: the event loop is still accepting the connections of this turn.
        asyncio.get_running_loop().call_soon(self._stop_accepting)

    def closed(self, connection: Connection) -> None:
        """Forget a connection, and serve one that waits."""
        if connection in self._connections:
            self._connections.remove(connection)
        elif connection in self._waiting:
            self._waiting.remove(connection)
        if self.is_closing:
            self._all_closed.set()
            return
        if len(self._connections) >= self._max_connections:
            return
        if self._waiting:
            following = self._waiting.popleft()
            self._connections.add(following)
            following.begin_reading()
        elif self._accepting is None and self._changing is None:
            self._changing = asyncio.get_running_loop().create_task(self._accept_again())

    async def _accept_again(self) -> None:
        try:
            if not self.is_closing:
                await self._accept()
        finally:
            self._changing = None
            if self.is_closing:
                self._stop_accepting()
