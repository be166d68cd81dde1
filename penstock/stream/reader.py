"""A reader: a connection's place in a stream's log, or in the logs of several.

In: the stream's wake-ups. Out: one call of whoever listens for all that has come in one turn of the
event loop, and then everything after the cursor, in one list; a reader that falls behind gets more
at once, so nothing is queued for it. Not known here: bytes, sockets.
"""

import asyncio
from collections.abc import Callable, Sequence

from penstock.events import Delta, Event, Failure
from penstock.stream.stream import Stream

# One send should not grow without bound for a reader that is far behind.
MAX_EVENTS_AT_ONCE = 256


class _Woken:
    """What both readers are woken by."""

    __slots__ = (
        "_call_soon",
        "_new_since",
        "_on_news",
        "is_closed",
        "is_woken",
        "taken_since",
    )

    def __init__(self) -> None:
        self._call_soon = asyncio.get_running_loop().call_soon
        self._on_news: Callable[[], None] | None = None
        self._new_since = 0.0
        self.is_woken = False
        """It was woken, and nothing was taken since."""
        self.is_closed = False
        self.taken_since = 0.0
        """When the oldest event that was taken last came into the log, on the monotonic clock; 0.0
        where it had been there before the reader."""

    def listen(self, on_news: Callable[[], None]) -> None:
        """Have this called soon after the first `wake` since the last `take`. Somebody may have
        taken meanwhile: then `is_woken` does not hold, and there is nothing to do."""
        self._on_news = on_news
        if self.is_woken:
            self._call_soon(on_news)

    def wake(self, logged_at: float = 0.0) -> None:
        """There is news; `logged_at` where the log has grown, on the monotonic clock."""
        if not self._new_since:
            self._new_since = logged_at
        if not self.is_woken:
            self.is_woken = True
            if self._on_news is not None:
                self._call_soon(self._on_news)  # not at once: more may come in this turn


class Reader(_Woken):
    """Reads one stream from `cursor` (the index of the next event) until its end, or `close`.

    A stream knows its readers: what becomes of one that nobody reads is decided in `streams`.
    """

    __slots__ = ("_log", "cursor", "stream")

    def __init__(self, stream: Stream, cursor: int = 0) -> None:
        super().__init__()
        self.stream = stream
        self.cursor = cursor
        self._log = stream.log
        stream.attach(self)

    @property
    def lag(self) -> int:
        """Events that the reader is behind."""
        return len(self._log) - self.cursor

    @property
    def is_done(self) -> bool:
        """Nothing more will come: the terminal event was taken, or the reader is closed."""
        return self.is_closed or (self._log.terminal is not None and self.lag <= 0)

    def take(self) -> list[Event]:
        """The events that are new, the oldest 256 at most; where there are more, it wakes again."""
        events = self._log.after(self.cursor, MAX_EVENTS_AT_ONCE)
        num = len(events)
        self.is_woken = False
        self.cursor += num
        self.taken_since = self._new_since
        if num < MAX_EVENTS_AT_ONCE:
            self._new_since = 0.0
        elif self.lag > 0:
            self.wake()
        return events

    def close(self) -> None:
        """Read no more. Does nothing the second time."""
        if not self.is_closed:
            self.is_closed = True
            self.wake()
            self.stream.detach(self)


class MergedReader(_Woken):
    """Reads several streams, the choices of one answer, as one: each event with the number of its
    stream.

    They end together: where one is cancelled or fails, so are the others.
    """

    __slots__ = ("_cursors", "_num_untold", "_streams")

    def __init__(self, streams: Sequence[Stream], cursor: int = 0) -> None:
        super().__init__()
        self._streams = tuple(streams)
        self._cursors = [cursor] * len(streams)
        # Those whose terminal events were not taken yet.
        self._num_untold = sum(
            stream.log.terminal is None or len(stream.log) > cursor for stream in streams
        )
        for stream in streams:
            stream.attach(self)

    @property
    def stream(self) -> Stream:
        """The first of the streams, after which all are named."""
        return self._streams[0]

    @property
    def lag(self) -> int:
        """Events that the reader is behind."""
        return sum(len(stream.log) for stream in self._streams) - sum(self._cursors)

    @property
    def is_done(self) -> bool:
        """Nothing more will come: all terminal events were taken, or the reader is closed."""
        return self.is_closed or not self._num_untold

    def take(self) -> list[tuple[int, Event]]:
        """The events that are new, the oldest 256 of each stream at most; where there are more, it
        wakes again."""
        self.is_woken = False
        self.taken_since, self._new_since = self._new_since, 0.0
        taken: list[tuple[int, Event]] = []
        for number, stream in enumerate(self._streams):
            events = stream.log.after(self._cursors[number], MAX_EVENTS_AT_ONCE)
            if not events:
                continue
            self._cursors[number] += len(events)
            taken += [(number, event) for event in events]
            last = events[-1]
            if not isinstance(last, Delta):
                self._num_untold -= 1
                if isinstance(last, Failure) or last.reason == "cancelled":
                    self._end_all()
            elif len(events) == MAX_EVENTS_AT_ONCE:
                self.wake()
        return taken

    def close(self) -> None:
        """Read no more. Does nothing the second time."""
        if not self.is_closed:
            self.is_closed = True
            self.wake()
            for stream in self._streams:
                stream.detach(self)

    def _end_all(self) -> None:
        for stream in self._streams:
            stream.cancel()


async def news(reader: Reader | MergedReader) -> None:
    """Wait until the reader has something to take, is woken, or is done; for those that have
    nothing else to do meanwhile."""
    if not (reader.is_woken or reader.is_done or reader.lag > 0):
        waiter = asyncio.get_running_loop().create_future()
        reader.listen(lambda: None if waiter.done() else waiter.set_result(None))
        await waiter
