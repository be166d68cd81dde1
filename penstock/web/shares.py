"""How connections are shared between addresses.

In: the connections that are open. Out: which of them must go. Not known here: sockets, HTTP.

No network may hold more than its share of the places. When all places are taken, the network that
holds the most of them loses connections on which no request is under way.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol, TypeVar

# One place in eight is not for the network that has all the others.
RESERVED_SHARE = 8
# The part of all places that is freed at once: finding the right connections looks at all of them.
FREED_SHARE = 16


class Place(Protocol):
    """A connection: its network, and whether and when it would be closed by itself."""

    @property
    def network(self) -> str:
        """Return the client's network, or "" if it has no share (a trusted proxy)."""

    @property
    def deadline(self) -> float:
        """Return when the connection is closed unless its client does something."""

    @property
    def is_idle(self) -> bool:
        """Return True if no request is under way."""


P = TypeVar("P", bound=Place)


def share_of(max_connections: int) -> int:
    """Return how many places one network may hold: seven eighths of all, and at least one."""
    return max(1, max_connections - max(1, max_connections // RESERVED_SHARE))


def freed_at_once(max_connections: int) -> int:
    """Return how many idle connections are closed when all places are taken."""
    return max(1, max_connections // FREED_SHARE)


def to_close(places: Iterable[P], number: int) -> list[P]:
    """Return up to `number` idle connections, in the order in which they should be closed.

    Each is of the network that holds the most places by then, and is the one whose deadline is
    next.
    """
    held: dict[str, int] = defaultdict(int)
    idle: dict[str, list[P]] = defaultdict(list)
    for place in places:
        if place.network:
            held[place.network] += 1
            if place.is_idle:
                idle[place.network].append(place)
    for each in idle.values():
        each.sort(key=lambda place: -place.deadline)
    greediest = [(-held[network], network) for network in idle]
    heapq.heapify(greediest)
    chosen: list[P] = []
    while greediest and len(chosen) < number:
        count, network = greediest[0]
        chosen.append(idle[network].pop())
        if idle[network]:
            heapq.heapreplace(greediest, (count + 1, network))
        else:
            heapq.heappop(greediest)
    return chosen
