"""Server-Sent Events, read: bytes cut anywhere → events.

In: the body of a `text/event-stream`, in pieces as the network gave them. Out: the events that are
complete. Not known here: sockets, reconnecting, what the data means.

Written from the WHATWG text, whose paragraphs are named at the rules they ask for:
https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re

import msgspec

MAX_BYTES = 1024 * 1024
"""What one line, and the data of one event, may hold by default."""

BOM = b"\xef\xbb\xbf"
RETRY = re.compile(r"[0-9]{1,15}")  # "only ASCII digits"; more of them is nobody's milliseconds


class OversizeEventError(ValueError):
    """A line, or the data of one event, is longer than the parser was told to take."""


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event as a browser would see it: `event` is its type, `id` the last id seen so far."""

    data: str
    event: str = "message"
    id: str = ""


class Parser:
    """`feed` it bytes as they come, `close` it when no more will.

    `last_event_id` is that of the last block that was complete, and `retry_ms` the reconnection
    time the server asked for, if it did.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._max_bytes = max_bytes
        self._line = bytearray()  # the line that is not complete yet
        self._is_first_line = True
        self._ended_in_cr = False
        self._forget_event()

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """Return the events that this piece completes.

        Raises `OversizeEventError`; the parser is of no use after it.
        """
        if self._ended_in_cr and piece.startswith(b"\n"):  # the rest of a CRLF
            piece = piece[1:]
            self._ended_in_cr = False
        if not piece:
            return []
        self._ended_in_cr = piece.endswith(b"\r")
        lines = piece.splitlines()  # of bytes: at CRLF, LF and CR, and nothing else
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
        """Drop what is incomplete: an event without its blank line never happened."""
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
        # A line that starts with a colon is a comment: its field has no name, so nothing takes it.
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
        self.last_event_id = self._id  # also where there is no data
        event = None
        if self._data:  # "if the data buffer is an empty string, [...] return"
            event = ServerSentEvent("\n".join(self._data), self._event or "message", self._id)
        self._forget_event()
        return event

    def _forget_event(self) -> None:
        """Start the next event. The id is kept: it holds until another one comes."""
        self._data: list[str] = []
        self._data_size = 0
        self._event = ""
        self._id = self.last_event_id

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise OversizeEventError(f"an event of more than {self._max_bytes} bytes")
