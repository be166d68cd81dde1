"""A parser of event streams, written from the standard and sharing no code with Penstock's.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
In: bytes, cut anywhere. Out: events. It knows nothing about sockets and JSON.
"""

import re
from typing import NamedTuple

LINE_END = re.compile(rb"\r\n|\n|\r")
BOM = b"\xef\xbb\xbf"


class ServerSent(NamedTuple):
    """A dispatched event. `last_id` is the last event id that the stream has set."""

    data: bytes
    last_id: str | None
    type: str


class EventParser:
    """A parser that takes bytes and returns the events they complete.

    `retry_ms` is the last reconnection time that the stream set. `num_comments` counts comments.
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.num_comments = 0
        self._line = b""
        self._ended_by_cr = False
        self._is_begun = False
        self._data: list[bytes] = []
        self._type = ""
        self._last_id: str | None = None

    def feed(self, data: bytes) -> list[ServerSent]:
        """Return the events that these bytes complete."""
        if self._ended_by_cr and data:
            # The CR has ended the line. If the cut split a CRLF, its LF does not end another line.
            data = data.removeprefix(b"\n")
            self._ended_by_cr = False
        if not data:
            return []
        buffered = self._line + data
        if not self._is_begun:
            if len(buffered) < len(BOM) and BOM.startswith(buffered):
                self._line = buffered
                return []
            buffered = buffered.removeprefix(BOM)
            self._is_begun = True
        self._ended_by_cr = buffered.endswith(b"\r")
        *lines, self._line = LINE_END.split(buffered)
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: bytes) -> ServerSent | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(b":")
        if colon and not name:
            self.num_comments += 1
            return None
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._type = value.decode("utf-8", "replace")
            case b"id" if b"\0" not in value:
                self._last_id = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit():
                self.retry_ms = int(value)
        return None

    def _dispatch(self) -> ServerSent | None:
        data, self._data = self._data, []
        kind, self._type = self._type, ""
        if not data:
            return None  # without a data field only the id counts
        return ServerSent(b"\n".join(data), self._last_id, kind or "message")
