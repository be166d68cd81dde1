"""Events of a stream → the bytes of the native API's Server-Sent Events.

In: a log's events. Out: frames; everything but the text and the index of a delta is made once, at
import. One frame is one event with one `data:` line: JSON escapes line breaks, so no text can
break out of it.
"""

from typing import Any

import msgspec

from penstock.events import Delta, Event, Failure, TerminalEvent
from penstock.stream.streams import ended_as

_encode = msgspec.json.encode
_BEFORE_TEXT = b'data: {"token":'
_AFTER_TEXT = b',"index":%d,"finished":false}\n\n'


class NativeFrames:
    """Frames one stream for one reader. `index` numbers the delta events from 0."""

    __slots__ = ("_index",)

    def __init__(self, index: int = 0) -> None:
        self._index = index

    def frame(self, events: list[Event]) -> bytes:
        """The frames of these events, in one piece."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, Delta):
                parts += (_BEFORE_TEXT, _encode(event.text), _AFTER_TEXT % self._index)
                self._index += 1
            else:
                end = {"token": "", "index": self._index, "finished": True, **ending(event)}
                parts.append(b"data: %b\n\n" % _encode(end))
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
    return fields
