"""The times at which streams must have ended: one timer for all of them.

A timer of its own for each stream would take half a kilobyte. In: names and times on the event
loop's clock. Out: a call for each name whose time has come.
"""

import asyncio
import heapq
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

# Discarded names stay in the heap until they outnumber the others, and there are this many.
MIN_REBUILD = 64
# The clock of the event loop counts milliseconds.
RESOLUTION_S = 0.001


class Deadlines:
    """Calls `expire` with each added name when its time comes, unless it was discarded."""

    def __init__(self, expire: Callable[[str], None]) -> None:
        self._expire = expire
        self._heap: list[tuple[float, str]] = []
        self._times: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._times)

    def add(self, name: str, seconds: float) -> None:
        """Let the time of `name` come in so many seconds.

        A time below the clock's resolution comes before this returns: on a busy machine, a whole
        answer may come before the next turn of the event loop.
        """
        if seconds < RESOLUTION_S:
            self._expire(name)
            return
        when = asyncio.get_running_loop().time() + seconds
        self._times[name] = when
        heapq.heappush(self._heap, (when, name))
        if self._heap[0][1] == name:
            self._arm()

    def discard(self, name: str) -> None:
        """Forget `name`, if it is there."""
        if self._times.pop(name, None) is None:
            return
        if len(self._heap) > max(MIN_REBUILD, 2 * len(self._times)):
            self._heap = [(when, name) for name, when in self._times.items()]
            heapq.heapify(self._heap)
        if not self._times:
            self._heap.clear()
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._heap[0][0], self._ring)

    def _ring(self) -> None:
        """Expire every name whose time has come."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            when, name = heapq.heappop(self._heap)
            if self._times.get(name) == when:
                del self._times[name]
                try:
                    self._expire(name)
                except Exception:  # a bug with one stream must not stop the deadlines of others
                    log.exception("a stream could not be ended at its deadline")
        self._arm()
