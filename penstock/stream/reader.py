"""A reader: one connection's place in the logs of the streams that it shows.

A stream wakes its readers when its log grows. A reader then calls its listener, once per turn of
the event loop, and hands out everything after its cursors in one list. A reader that falls behind
gets more events at once, so nothing is queued for it. It knows nothing about bytes or sockets.
"""

import asyncio
from collections.abc import Callable

from penstock.events import Event, Failure, TerminalEvent
from penstock.stream.lane import Lane
from penstock.stream.stream import Stream

# Keeps one send bounded for a reader that is far behind.
MAX_EVENTS_AT_ONCE = 256

Batch = tuple[int, list[Event]]
"""The new events of one stream, with the stream's number among those that the reader reads."""


class Reader:
    """Reads one stream, or the several choices of one answer, until their end or until `close`.

    `cursor` is the index of the first event to read, in every stream. Several streams end
    together: if one is cancelled or fails, the reader cancels the others.
    """

    __slots__ = (
        "__weakref__",
        "_call_soon",
        "_cursors",
        "_lane",
        "_logs",
        "_new_since",
        "_num_open",
        "_on_news",
        "is_closed",
        "is_cut",
        "is_done",
        "is_woken",
        "num_taken",
        "streams",
        "taken_since",
    )

    def __init__(self, *streams: Stream, cursor: int = 0) -> None:
        self.streams = streams
        self._cursors = [cursor] * len(streams)
        self._logs = tuple(enumerate(stream.log for stream in streams))
        # Streams whose terminal event was not taken yet.
        self._num_open = sum(
            stream.log.terminal is None or len(stream.log) > cursor for stream in streams
        )
        self._call_soon = asyncio.get_running_loop().call_soon
        self._on_news: Callable[[], None] | None = None
        self._new_since = 0.0
        self._lane: Lane | None = None
        self.is_woken = False
        """True from `wake` until the next `take`."""
        self.is_closed = False
        self.is_cut = False
        """True if the connection must end without an end of the streams."""
        self.is_done = not self._num_open
        """True once every terminal event was taken, or the reader is closed."""
        self.num_taken = 0
        """Events in the last `take`."""
        self.taken_since = 0.0
        """When the oldest event of the last `take` entered the log, on the monotonic clock; 0.0 if
        it was there before the reader."""
        for stream in streams:
            stream.attach(self)

    @property
    def stream(self) -> Stream:
        """Return the first stream, whose id names the answer."""
        return self.streams[0]

    @property
    def cursor(self) -> int:
        """Return the index of the next event to take from the first stream."""
        return self._cursors[0]

    @property
    def lag(self) -> int:
        """Return how many events the reader is behind."""
        taken = sum(self._cursors) if self._lane is None else self._lane.cursor
        return sum(len(stream.log) for stream in self.streams) - taken

    def listen(self, on_news: Callable[[], None]) -> None:
        """Call `on_news` soon after the first `wake` that follows each `take`.

        If someone else has taken the events meanwhile, `is_woken` is False in that call.
        """
        self._on_news = on_news
        if self.is_woken:
            self._call_soon(on_news)

    def wake(self, logged_at: float = 0.0) -> None:
        """Note that there is something to do.

        `logged_at` is when the log grew, on the monotonic clock; 0.0 if it did not grow.
        """
        if self._lane is not None:
            self.leave_lane()
        if not self._new_since:
            self._new_since = logged_at
        if not self.is_woken:
            self.is_woken = True
            if self._on_news is not None:
                self._call_soon(self._on_news)  # not at once: this turn may bring more events

    def open_lane(self, lane: Lane) -> None:
        """Let the straight path take what comes next, if all that came before was taken."""
        can_go = not self.is_woken and len(self.streams) == 1
        if can_go and self.stream.open_lane(lane, self._cursors[0]):
            self._lane = lane

    def leave_lane(self) -> None:
        """Take over from the straight path."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()
            self._cursors[0] = lane.cursor
            self.stream.lane = None

    def note_taken(self, logged_at: float) -> None:
        """Note that someone else has taken one event, logged at this time."""
        self.num_taken, self.taken_since = 1, logged_at

    def take(self) -> list[Batch]:
        """Return the new events, at most 256 of each stream; wake again if there are more."""
        self.is_woken = False
        self.taken_since = self._new_since
        num_taken = 0
        has_more = False
        batches: list[Batch] = []
        cursors = self._cursors
        for number, log in self._logs:
            cursor = cursors[number]
            events = log.after(cursor, MAX_EVENTS_AT_ONCE)
            if events:
                num = len(events)
                num_taken += num
                cursors[number] = cursor + num
                batches.append((number, events))
                if num == MAX_EVENTS_AT_ONCE:
                    has_more = True
                if log.terminal is not None and events[-1] is log.terminal:
                    self._note_end(log.terminal)
        self.num_taken = num_taken
        if not has_more:
            self._new_since = 0.0
        elif self.lag > 0:
            self.wake()
        return batches

    def cut(self) -> None:
        """Have the connection cut: nobody here knows how the streams go on."""
        self.is_cut = True
        self.wake()

    def close(self) -> None:
        """Stop reading. A second call does nothing."""
        if not self.is_closed:
            self.is_closed = self.is_done = True
            self.wake()
            self._on_news = None  # its owner refers to this reader
            for stream in self.streams:
                stream.detach(self)

    def _note_end(self, end: TerminalEvent) -> None:
        self._num_open -= 1
        self.is_done = self.is_closed or not self._num_open
        if isinstance(end, Failure) or end.reason == "cancelled":
            for stream in self.streams:
                stream.cancel()
