"""A parser of Server-Sent Events: bytes to events.

In: the body of a `text/event-stream`, in pieces of any size. Out: the complete events. This module
knows no sockets, no reconnecting, and not the meaning of the data.

The comments quote the rules of the WHATWG specification:
https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re

import msgspec

MAX_BYTES = 1024 * 1024
"""The default limit of a line, and of the data of an event, in bytes."""

BOM = b"\xef\xbb\xbf"
RETRY = re.compile(r"[0-9]{1,15}")  # "only ASCII digits"; 15 are enough for any wait


class OversizeEventError(ValueError):
    """A line, or the data of an event, is longer than the limit of the parser."""


class ServerSentEvent(msgspec.Struct, frozen=True):
    """An event as a browser would see it."""

    data: str
    """The data; several data lines are joined by newlines."""
    event: str = "message"
    """The type of the event."""
    id: str = ""
    """The last id received, in this event or an earlier event."""


class Parser:
    """A parser of one stream: call `feed` with the bytes as they arrive, then `close`.

    `max_bytes` is the limit of a line, and of the data of an event, in bytes.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.last_event_id = ""
        """The id of the last complete block; empty before the first id."""
        self.retry_ms: int | None = None
        """The reconnection time of the server, in milliseconds, if the server sent `retry`."""
        self._max_bytes = max_bytes
        self._line = bytearray()  # the incomplete line
        self._is_first_line = True
        self._ended_in_cr = False
        self._forget_event()

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """Return the events that this piece completes.

        Raises OversizeEventError if a line or event is too long; do not use the parser after it.
        """
        if self._ended_in_cr and piece.startswith(b"\n"):  # the rest of a CRLF
            piece = piece[1:]
            self._ended_in_cr = False
        if not piece:
            return []
        self._ended_in_cr = piece.endswith(b"\r")
        lines = piece.splitlines()  # bytes split only at CRLF, LF and CR
        rest = b"" if piece.endswith((b"\r", b"\n")) else lines.pop()
        events = []
        for line in lines:
            event = self._take(self._whole(line))
            if event is not None:
                events.append(event)
        self._line += rest
        self._check(len(self._line))
        return events

    def close(self) -> None:
        """Drop an incomplete event: an event without its blank line does not count."""
        self._line.clear()
        self._forget_event()

    def _whole(self, line: bytes) -> bytes:
        if self._line:
            line = bytes(self._line + line)
            self._line.clear()
        self._check(len(line))
        if self._is_first_line:  # "one leading U+FEFF is ignored"
            self._is_first_line = False
            line = line.removeprefix(BOM)
        return line

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        # A comment starts with a colon, so its field has no name and is ignored.
        field, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data_size += len(line)
            self._check(self._data_size)
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "id":
            if "\0" not in value:
                self._id = value
        elif field == "retry" and RETRY.fullmatch(value):
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        self.last_event_id = self._id  # also without data
        event = None
        if self._data:  # "if the data buffer is an empty string, [...] return"
            event = ServerSentEvent("\n".join(self._data), self._event or "message", self._id)
        self._forget_event()
        return event

    def _forget_event(self) -> None:
        """Start the next event. It has the same id until another id arrives."""
        self._data: list[str] = []
        self._data_size = 0
        self._event = ""
        self._id = self.last_event_id

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise OversizeEventError(f"an event of more than {self._max_bytes} bytes")
