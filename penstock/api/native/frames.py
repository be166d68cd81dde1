"""Events of a stream → the bytes of the native API's Server-Sent Events.

In: a log's events. Out: frames; everything but the text and the index of a delta is made once, at
import. One frame is one event with one `data:` line: JSON escapes line breaks, so no text can
break out of it.
"""

from typing import Any, Protocol

import msgspec

from penstock.events import Delta, Event, Failure, TerminalEvent
from penstock.stream.reader import Reader
from penstock.stream.registry import ended_as
from penstock.stream.stream import Stream
from penstock.web.delivery import Framer, Readable

_encode = msgspec.json.encode
_ID = b"id: %d\n"
_DELTA = b'data: {"token":%b,"index":%d,"finished":false}\n\n'


class Form(Protocol):
    """How a resumable stream was opened (`Stream.opened_as`), and so is shown to its readers."""

    def num_events(self, stream: Stream) -> int:
        """The events that have ids so far."""

    def read_on(self, stream: Stream, first: int) -> tuple[Readable[Any], Framer[Any]]:
        """What reads the stream and frames it, from the event with this id on."""


class NativeForm:
    """The native API's."""

    def num_events(self, stream: Stream) -> int:
        """An event's id is its index in the log."""
        return len(stream.log)

    def read_on(self, stream: Stream, first: int) -> tuple[Reader, "NativeFrames"]:
        """With ids, as at first."""
        return Reader(stream, first), NativeFrames(first, with_ids=True)


class NativeFrames:
    """Frames one stream for one reader, from the event at `index` on.

    An event's index is its place in the log, from 0; `with_ids` makes it the event's id as well,
    as a reader needs it to resume. An event has the same bytes for every reader.
    """

    __slots__ = ("_index", "_with_ids")

    def __init__(self, index: int = 0, *, with_ids: bool = False) -> None:
        self._index = index
        self._with_ids = with_ids

    def frame(self, events: list[Event]) -> bytes:
        """The frames of these events, in one piece."""
        parts: list[bytes] = []
        index = self._index
        for event in events:
            if self._with_ids:
                parts.append(_ID % index)
            if isinstance(event, Delta):
                parts.append(_DELTA % (_encode(event.text), index))
            else:
                end = {"token": "", "index": index, "finished": True, **ending(event)}
                if self._with_ids and isinstance(event, Failure) and index:
                    end["error"]["resume_after"] = index - 1
                parts.append(b"data: %b\n\n" % _encode(end))
            index += 1
        self._index = index
        return b"".join(parts)


def ending(event: TerminalEvent) -> dict[str, Any]:
    """A terminal event's fields in the native API."""
    fields: dict[str, Any] = {
        "finish_reason": ended_as(event),
        "usage": {
            "prompt_tokens": event.usage.prompt_tokens,
            "completion_tokens": event.usage.completion_tokens,
            "total_tokens": event.usage.total_tokens,
        },
        "timings": event.timings,
    }
    if isinstance(event, Failure):
        fields["error"] = {
            "code": event.code,
            "message": event.message,
            "retry_safe": event.retry_safe,
        }
    elif not event.reproducible:
        fields["reproducible"] = False
    return fields
