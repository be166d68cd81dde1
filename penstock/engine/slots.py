"""Slots: how many requests an engine runs at once, and the queue for them.

In: requests, as callables that begin them. Out: calls in the order of arrival, at most `num_slots`
without a `release` between them. Not known here: engines, time, tokens.
"""

import collections
from collections.abc import Callable


class Slots:
    """A first-come, first-served queue for `num_slots` slots.

    `num_slots` 0 means no bound. At most `max_waiting` requests wait.
    """

    def __init__(self, num_slots: int, max_waiting: int = 4096) -> None:
        self._num_slots = num_slots
        self._max_waiting = max_waiting
        self._running: set[str] = set()
        self._waiting: collections.OrderedDict[str, Callable[[], None]] = collections.OrderedDict()

    @property
    def num_running(self) -> int:
        """The number of requests that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._waiting)

    def acquire(self, request_id: str, begin: Callable[[], None]) -> bool:
        """Call `begin` now or when a slot is free. Return False if the queue is full."""
        if not self._num_slots or len(self._running) < self._num_slots:
            self._running.add(request_id)
            begin()
            return True
        if len(self._waiting) >= self._max_waiting:
            return False
        self._waiting[request_id] = begin
        return True

    def resize(self, num_slots: int) -> None:
        """Change the number of slots. Running requests keep theirs; waiting ones get new slots."""
        self._num_slots = num_slots
        while self._waiting and (not num_slots or len(self._running) < num_slots):
            self._begin_next()

    def release(self, request_id: str) -> None:
        """Leave the slot or the queue; the next request begins. Unknown ids are ignored."""
        self._waiting.pop(request_id, None)
        if request_id in self._running:
            self._running.remove(request_id)
            if self._waiting and len(self._running) < self._num_slots:
                self._begin_next()

    def _begin_next(self) -> None:
        next_id, begin = self._waiting.popitem(last=False)
        self._running.add(next_id)
        begin()
