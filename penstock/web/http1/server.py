"""Serves plain HTTP/1.1 on listening sockets: accepts connections and watches their deadlines.

One timer looks at the deadlines of all connections, so that a request costs no timer of its own.
"""

import asyncio
import collections
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Scope

from penstock.supervision import keep
from penstock.web import shares
from penstock.web.http1 import response
from penstock.web.http1.accepting import Acceptor, Turns
from penstock.web.http1.connection import Connection
from penstock.web.http1.exchange import Exchange

log = logging.getLogger(__name__)

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
    """Serves `app` on `listeners`. At most `max_connections` connections are served at once.

    A client for whose address `trusts` returns True may use the PROXY protocol, and its connections
    are not counted towards its address's share (see `shares`). As many connections again may wait,
    unread; beyond these, the address that has the most of them waiting loses its newest. `turns`
    says when to accept, if other processes accept from `listeners`, too.
    """

    def __init__(
        self,
        app: ASGIApp,
        listeners: Sequence[socket.socket],
        max_connections: int,
        timeouts: Timeouts | None = None,
        trusts: Callable[[str], bool] = lambda address: False,
        turns: Turns | None = None,
    ) -> None:
        self.app = app
        self._turns = turns
        self.trusts = trusts
        self.timeouts = timeouts or Timeouts()
        self.date = response.date_line(time.time())
        self.num_starting = 0
        """The requests whose tasks were made and have not started yet."""
        self.to_start: collections.deque[tuple[Exchange, Scope]] = collections.deque()
        """The requests that wait for their tasks, because many others start."""
        self.is_closing = False
        """True once connections end with their response."""
        self._listeners = listeners
        self._max_connections = max_connections
        self._share = shares.share_of(max_connections)
        self._connections: set[Connection] = set()
        self._num_served: collections.Counter[str] = collections.Counter()
        # For each network its waiting connections, in the order in which they came.
        self._waiting: dict[str, dict[Connection, None]] = {}
        self._num_waiting = 0
        self._is_making_room = False
        """True if idle connections are about to be looked for, or none was found in this tick."""
        self._num_dropped = 0
        self._all_closed = asyncio.Event()

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set and every response has ended."""
        accepting = [await self._accept(each) for each in self._listeners]
        ticking = keep("HTTP deadlines", self._tick)
        try:
            await stop.wait()
            self.is_closing = True
            for listening, listener in zip(accepting, self._listeners, strict=True):
                listening.close()
                listener.close()
            for connection in self._all():
                connection.close_if_idle()
            while self._connections or self._num_waiting:
                self._all_closed.clear()
                await self._all_closed.wait()
        finally:
            ticking.cancel()
            for listening in accepting:
                listening.close()
            for connection in self._all():
                connection.abort()

    async def _accept(self, listener: socket.socket) -> asyncio.AbstractServer | Acceptor:
        """Begin to accept. Its socket is closed when accepting ends; the listener stays open."""
        listener = listener.dup()
        if self._turns is not None:
            return Acceptor(listener, lambda: Connection(self), self._turns)
        return await asyncio.get_running_loop().create_server(
            lambda: Connection(self), sock=listener, backlog=self._max_connections
        )

    def _all(self) -> list[Connection]:
        return [*self._connections, *(each for queue in self._waiting.values() for each in queue)]

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
            self._is_making_room = False
            if self._num_waiting:
                self._plan_room()
            if self._num_dropped:
                log.warning("cut %d connections: too many were waiting", self._num_dropped)
                self._num_dropped = 0

    def start_next(self) -> None:
        """Start the next request whose client is still there."""
        while self.to_start:
            exchange, scope = self.to_start.popleft()
            if not exchange.is_gone:
                exchange.begin(self.app, scope)
                return

    # Reports of connections.

    def opened(self, connection: Connection) -> None:
        """Serve a new connection, or let it wait until there is room for it."""
        network = connection.network
        if self._has_room(network):
            self._serve(connection)
            return
        connection.wait_for_room()
        self._waiting.setdefault(network, {})[connection] = None
        self._num_waiting += 1
        if self._num_waiting > self._max_connections:
            self._drop_newest()
        self._plan_room()

    def closed(self, connection: Connection) -> None:
        """Forget a connection, and serve one that waits."""
        if self._turns is not None:
            self._turns.closed()
        network = connection.network
        if connection in self._connections:
            self._connections.remove(connection)
            self._num_served[network] -= 1
            if not self._num_served[network]:
                del self._num_served[network]
        else:
            self._forget_waiting(connection)
        if self.is_closing:
            self._all_closed.set()
            return
        following = next((each for each in self._waiting if self._has_room(each)), None)
        if following is not None:
            first = next(iter(self._waiting[following]))
            self._forget_waiting(first)
            self._serve(first)

    def _has_room(self, network: str) -> bool:
        """Return True if another connection of this network can be served."""
        if len(self._connections) >= self._max_connections:
            return False
        return not network or self._num_served[network] < self._share

    def _serve(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._num_served[connection.network] += 1
        connection.begin_reading()

    def _forget_waiting(self, connection: Connection) -> None:
        network = connection.network
        if connection not in self._waiting.get(network, ()):
            return
        queue = self._waiting.pop(network)
        del queue[connection]
        self._num_waiting -= 1
        if queue:
            self._waiting[network] = queue  # behind the other networks

    def _drop_newest(self) -> None:
        """Cut the newest waiting connection of the network that has the most of them."""
        network = max(self._waiting, key=lambda each: len(self._waiting[each]))
        newest = next(reversed(self._waiting[network]))
        self._forget_waiting(newest)
        self._num_dropped += 1
        newest.abort()

    def _plan_room(self) -> None:
        if not self._is_making_room:
            self._is_making_room = True
            # Not at once: the event loop is still accepting the connections of this turn.
            asyncio.get_running_loop().call_soon(self._make_room)

    def _make_room(self) -> None:
        """Close idle connections for those that wait."""
        number = min(self._num_waiting, shares.freed_at_once(self._max_connections))
        places = self._connections
        if all(each and self._num_served[each] >= self._share for each in self._waiting):
            # A place of another network would be of no use to those that wait.
            places = {each for each in places if each.network in self._waiting}
        found = shares.to_close(places, number)
        self._is_making_room = not found  # until the next tick
        for connection in found:
            connection.close_if_idle()
