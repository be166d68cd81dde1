"""Shows a client what happens to its stream, between the frames of its events.

In: statuses, each with the index of the event before which it belongs. Out: bytes, in the place
where they belong. A status is a comment, which every parser of Server-Sent Events skips, or an
event without an id.
"""

from collections import deque
from collections.abc import Callable

import msgspec

from penstock.stream.admission import Place
from penstock.stream.reader import Batch, Reader
from penstock.stream.status import Status

Show = Callable[[Status], bytes]

# A client that does not read misses the oldest statuses: they say nothing about now.
MAX_PENDING = 16


def status_comment(status: Status) -> bytes:
    """Return a status as a comment."""
    return b": status %b\n" % msgspec.json.encode(status)


def status_event(status: Status) -> bytes:
    """Return a status as an event, which has no id because it is not part of the answer."""
    return b"event: status\ndata: %b\n\n" % msgspec.json.encode(status)


class StatusLines:
    """The statuses of the stream that `reader` reads, shown by `show` (see `status.Watcher`)."""

    __slots__ = ("_last", "_reader", "_show", "pending")

    def __init__(self, reader: Reader, show: Show) -> None:
        self._reader = reader
        self._show = show
        self._last: Status | None = None
        self.pending: deque[tuple[int, Status]] = deque(maxlen=MAX_PENDING)

    def open(self) -> None:
        """Begin to watch the stream."""
        self._reader.stream.watch(self)

    def close(self) -> None:
        """Watch no more."""
        self._reader.stream.unwatch(self)

    def tell(self, status: Status, index: int) -> None:
        """Have a status shown after the first `index` events of the log."""
        if status == self._last:
            return
        if self.pending and self.pending[-1][0] == index and self._is_newer(status):
            self.pending.pop()  # not sent yet
        self._last = status
        self.pending.append((index, status))
        self._reader.wake()

    def _is_newer(self, status: Status) -> bool:
        """Return True if nothing but the figures of the last status has changed."""
        return self._last is not None and self._last.state == status.state

    def place(self, place: Place) -> bytes:
        """Return the status that tells a place in the queue."""
        eta = None if place.eta is None else round(place.eta, 1)
        return self._show(Status("queued", position=place.position, eta=eta))

    def weave(self, batches: list[Batch], frame: Callable[[list[Batch]], bytes]) -> bytes:
        """Return the frames of the events just taken, with each status in its place."""
        events = batches[0][1] if batches else []
        end = self._reader.cursor
        first = end - len(events)
        parts: list[bytes] = []
        while self.pending and self.pending[0][0] <= end:
            index, status = self.pending.popleft()
            if index > first:
                parts.append(frame([(0, events[: index - first])]))
                events, first = events[index - first :], index
            parts.append(self._show(status))
        if events:
            parts.append(frame([(0, events)]))
        return b"".join(parts)
