"""A reader: a connection's place in a stream's log, or in the logs of several.

In: the stream's wake-ups. Out: everything after the cursor, in one list; a reader that falls
behind gets more at once, so nothing is queued for it. Not known here: bytes, sockets.
"""

import asyncio
from collections.abc import Sequence

from penstock.events import Event, Failure, Finish
from penstock.stream.stream import Stream

# One send should not grow without bound for a reader that is far behind.
MAX_EVENTS_AT_ONCE = 256


class Reader:
    """Reads one stream from `cursor` (the index of the next event) until its end, or `close`.

    A stream knows its readers: what becomes of one that nobody reads is decided in `streams`.
    """

    __slots__ = ("_new_since", "_waiter", "cursor", "is_closed", "stream", "taken_since")

    def __init__(self, stream: Stream, cursor: int = 0) -> None:
        self.stream = stream
        self.cursor = cursor
        self.is_closed = False
        self.taken_since = 0.0
        """When the oldest event that was taken last came into the log, on the monotonic clock; 0.0
        where it had been there before the reader."""
        self._new_since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        stream.attach(self)

    @property
    def lag(self) -> int:
        """Events that the reader is behind."""
        return len(self.stream.log) - self.cursor

    @property
    def is_done(self) -> bool:
        """Nothing more will come: the terminal event was taken, or the reader is closed."""
        return self.is_closed or (self.stream.log.terminal is not None and self.lag <= 0)

    async def take(self) -> list[Event]:
        """Wait for events and take them, the oldest 256 at most. Empty after `wake` and `close`."""
        events = self.stream.log.after(self.cursor, MAX_EVENTS_AT_ONCE)
        if not events and not self.is_done:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            events = self.stream.log.after(self.cursor, MAX_EVENTS_AT_ONCE)
        self.cursor += len(events)
        self.taken_since = self._new_since
        if len(events) < MAX_EVENTS_AT_ONCE:
            self._new_since = 0.0
        return events

    def wake(self, logged_at: float = 0.0) -> None:
        """End the wait in `take`, if there is one; `logged_at` where the log has grown."""
        if not self._new_since:
            self._new_since = logged_at
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Read no more. Does nothing the second time."""
        if not self.is_closed:
            self.is_closed = True
            self.wake()
            self.stream.detach(self)


class MergedReader:
    """Reads several streams, the choices of one answer, as one: each event with the number of its
    stream.

    They end together: where one is cancelled or fails, so are the others.
    """

    __slots__ = (
        "_cursors",
        "_is_ending",
        "_new_since",
        "_streams",
        "_waiter",
        "is_closed",
        "taken_since",
    )

    def __init__(self, streams: Sequence[Stream], cursor: int = 0) -> None:
        self._streams = tuple(streams)
        self._cursors = [cursor] * len(streams)
        self._waiter: asyncio.Future[None] | None = None
        self._is_ending = False
        self._new_since = 0.0
        self.is_closed = False
        self.taken_since = 0.0
        """As that of `Reader`."""
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
        return self.is_closed or (
            all(stream.log.terminal is not None for stream in self._streams) and self.lag <= 0
        )

    async def take(self) -> list[tuple[int, Event]]:
        """Wait for events and take them, the oldest 256 of each stream at most. Empty after `wake`
        and `close`."""
        if self.lag <= 0 and not self.is_done:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self.taken_since, self._new_since = self._new_since, 0.0
        taken: list[tuple[int, Event]] = []
        for number, stream in enumerate(self._streams):
            events = stream.log.after(self._cursors[number], MAX_EVENTS_AT_ONCE)
            self._cursors[number] += len(events)
            taken += [(number, event) for event in events]
            if events and _ends_all(events[-1]):
                self._end_others()
        return taken

    def wake(self, logged_at: float = 0.0) -> None:
        """End the wait in `take`, if there is one; `logged_at` where a log has grown."""
        if not self._new_since:
            self._new_since = logged_at
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Read no more. Does nothing the second time."""
        if not self.is_closed:
            self.is_closed = True
            self.wake()
            for stream in self._streams:
                stream.detach(self)

    def _end_others(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            for stream in self._streams:
                stream.cancel()


def _ends_all(event: Event) -> bool:
    return isinstance(event, Failure) or (isinstance(event, Finish) and event.reason == "cancelled")
