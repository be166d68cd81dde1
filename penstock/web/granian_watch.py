"""Watches the connections that Granian serves, from outside: silent ones and crowds of them.

In: Granian's requests, as their ASGI wrapper, and the sockets of this process. Out: some sockets
are shut down, which Granian sees as a client that left. Not known here: TLS, HTTP.

Granian has no limit for a connection that is silent after its handshake, none for an idle HTTP/2
connection, and none for an address. But its sockets are in our process. Linux only: elsewhere
nothing is watched.
"""

import asyncio
import collections
import contextlib
import fcntl
import logging
import math
import os
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.web import shares
from penstock.web.addresses import network_of
from penstock.web.http1.server import Timeouts

log = logging.getLogger(__name__)

TICK_S = 1.0
_DESCRIPTORS = Path("/proc/self/fd")

Client = tuple[str, int]


@dataclass(frozen=True)
class WatchedSocket:
    """A connection (see `shares.Place`). `inode` is its socket's, whatever number it has here."""

    inode: int
    descriptor: int
    network: str
    seen_at: float
    deadline: float

    @property
    def is_idle(self) -> bool:
        """Return True if no request is under way."""
        return self.deadline < math.inf


class GranianWatch:
    """Passes Granian's requests on to `app`, and closes connections on `listener`'s port.

    A connection is closed if its first request has not begun within twice `timeouts.head`, once for
    TLS's handshake and once for the head, or if it has been idle for `timeouts.keep_alive`. Each
    network has its share (see `shares`), except for addresses for which `trusts` returns True.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        max_connections: int,
        timeouts: Timeouts,
        trusts: Callable[[str], bool],
    ) -> None:
        self._app = app
        self._port = listener.getsockname()[1]
        self._max_connections = max_connections
        self._timeouts = timeouts
        self.first_request_s = 2 * timeouts.head
        """Within this time a connection's first request begins, or the connection is closed."""
        self._trusts = trusts
        self._num_open: collections.Counter[Client] = collections.Counter()
        self._ended_at: dict[Client, float] = {}
        # For each socket of this process its client and when it was seen first; None if it is no
        # connection of Granian's.
        self._known: dict[int, tuple[Client, float] | None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        host, port = scope["client"]
        client = host, int(port)  # Granian's port is text
        self._num_open[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_open[client] -= 1
            if not self._num_open[client]:
                del self._num_open[client]
                self._ended_at[client] = time.monotonic()

    async def run(self) -> None:
        """Watch for ever."""
        if sys.platform != "linux":
            return
        tick = min(TICK_S, self._timeouts.head / 4, self._timeouts.keep_alive / 4)
        while True:
            await asyncio.sleep(tick)
            try:
                found = await asyncio.to_thread(self._find_sockets)
                self._look_at(found, time.monotonic())
            except Exception as error:  # such as too many open files; the next look may succeed
                log.error("cannot look at the connections", exc_info=error)

    def _find_sockets(self) -> dict[int, int]:
        """Return the descriptor of each socket's inode; learn who is at the new ones."""
        found = {}
        for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - faster, for thousands
            with contextlib.suppress(OSError):  # closed meanwhile
                target = os.readlink(f"{_DESCRIPTORS}/{name}")  # noqa: PTH115 - the same
                if target.startswith("socket:["):
                    found[int(target[8:-1])] = int(name)
        known = self._known
        now = time.monotonic()
        self._known = {inode: known[inode] for inode in found if inode in known}
        for inode in found.keys() - known.keys():
            client = self._client_at(found[inode], inode)
            self._known[inode] = None if client is None else (client, now)
        return found

    def _client_at(self, descriptor: int, inode: int) -> Client | None:
        with contextlib.suppress(OSError), _same_socket(descriptor, inode) as sock:
            if sock.getsockname()[1:2] == (self._port,):
                name = sock.getpeername()
                return name[0], name[1]
        return None

    def _look_at(self, found: dict[int, int], now: float) -> None:
        places = list(self._places(found))
        ended = [each for each in places if each.deadline < now and _has_sent_all(each)]
        open_now = [each for each in places if each.deadline >= now]
        crowding = self._beyond_share(open_now)
        if len(open_now) >= self._max_connections:
            crowding += shares.to_close(open_now, shares.freed_at_once(self._max_connections))
        for each in {*ended, *crowding}:
            with contextlib.suppress(OSError), _same_socket(each.descriptor, each.inode) as sock:
                sock.shutdown(socket.SHUT_RDWR)
        if crowding:
            log.warning("closed %d connections: too many are open", len(set(crowding)))

    def _places(self, found: dict[int, int]) -> Iterable[WatchedSocket]:
        ended_at, self._ended_at = self._ended_at, {}
        for inode, descriptor in found.items():
            known = self._known.get(inode)
            if known is None:
                continue
            client, seen_at = known
            deadline = seen_at + self.first_request_s
            ended = ended_at.get(client)
            if ended is not None:
                self._ended_at[client] = ended
                deadline = max(deadline, ended + self._timeouts.keep_alive)
            if client in self._num_open:
                deadline = math.inf
            network = "" if self._trusts(client[0]) else network_of(client[0])
            yield WatchedSocket(inode, descriptor, network, seen_at, deadline)

    def _beyond_share(self, places: Iterable[WatchedSocket]) -> list[WatchedSocket]:
        """Return what a network holds beyond its share: idle connections, then the newest."""
        held: dict[str, list[WatchedSocket]] = collections.defaultdict(list)
        for place in places:
            if place.network:
                held[place.network].append(place)
        chosen = []
        for own in held.values():
            number = len(own) - shares.share_of(self._max_connections)
            if number > 0:
                idle = shares.to_close(own, number)
                busy = sorted((each for each in own if not each.is_idle), key=_seen_at)
                chosen += [*idle, *busy[len(busy) - number + len(idle) :]]
        return chosen


def _seen_at(place: WatchedSocket) -> float:
    return place.seen_at


@contextlib.contextmanager
def _same_socket(descriptor: int, inode: int) -> Iterator[socket.socket]:
    """Yield the socket, with a descriptor of our own. Raises OSError if it is gone.

    Granian may close its descriptor at any time, and the number may then be another file's.
    """
    own = os.dup(descriptor)
    if os.fstat(own).st_ino != inode:
        os.close(own)
        raise OSError("another file")
    with socket.socket(fileno=own) as sock:
        yield sock


def _has_sent_all(place: WatchedSocket) -> bool:
    """Return True if the client has taken all that was sent; otherwise it may still be reading."""
    with contextlib.suppress(OSError), _same_socket(place.descriptor, place.inode) as sock:
        unsent = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(unsent, sys.byteorder) == 0
    return True
