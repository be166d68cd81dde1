"""A reader: a connection's place in a stream's log.

In: the stream's wake-ups. Out: everything after the cursor, in one list; a reader that falls
behind gets more at once, so nothing is queued for it. Not known here: bytes, sockets.
"""

from penstock.events import Event
from penstock.stream.stream import Stream


class Reader:
    """Reads one stream from `cursor` (the index of the next event) to its end."""

    __slots__ = ("cursor", "stream")

    def __init__(self, stream: Stream, cursor: int = 0) -> None:
        self.stream = stream
        self.cursor = cursor

    @property
    def lag(self) -> int:
        """Events that the reader is behind."""
        return len(self.stream.log) - self.cursor

    async def take(self) -> list[Event]:
        """Wait for events and take all there are; empty once the terminal one was taken."""
        log = self.stream.log
        if self.cursor >= len(log):
            await self.stream.grown(self.cursor)
        events = log.after(self.cursor)
        self.cursor += len(events)
        return events
