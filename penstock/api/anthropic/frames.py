"""Turns a stream's events into Anthropic's events, and into its whole message.

In: the events of one stream. Out: Server-Sent Events with names. One event of the log may become
several of them: the first delta of a block also ends the block before it and begins its own.
Everything but a delta's text is made once for each block. An event's id counts these events, so a
reader can resume after any of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from penstock.api.anthropic.errors import failure_object
from penstock.api.anthropic.fields import Display
from penstock.api.anthropic.objects import (
    Kind,
    begins_block,
    content_of,
    empty_block,
    ending_fields,
    kind_of,
    signature_of,
    usage_fields,
)
from penstock.api.dialect import Form
from penstock.api.event_ids import id_line
from penstock.api.fields import MAX_TOKENS
from penstock.events import (
    Delta,
    Event,
    Failure,
    Finish,
    Reasoning,
    TerminalEvent,
    ToolCall,
    Usage,
    num_reasoning_tokens,
)
from penstock.stream.reader import Batch
from penstock.stream.stream import Stream

_encode = msgspec.json.encode
_FRAME = b"event: %b\ndata: %b\n\n"
_DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
)
_AFTER = b"}}\n\n"
_DELTAS: dict[Kind, tuple[bytes, bytes]] = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}
PING = _FRAME % (b"ping", b'{"type":"ping"}')
"""The event that Anthropic's server sends while there is nothing else."""


class MessageForm(Form, frozen=True):
    """How the answer of `/v1/messages` is shown.

    `id` and `model` are in the message. `display` says how reasoning is shown. An answer that fills
    the context of `context_length` tokens says so.
    """

    dialect = "anthropic.messages"
    id: str
    model: str
    display: Display = "shown"
    context_length: int = MAX_TOKENS

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> "MessageFrames":
        """Return what frames the one stream from its beginning."""
        (stream,) = streams
        return MessageFrames(self, stream, with_ids=with_ids)

    def num_events(self, stream: Stream) -> int:
        """Return how many events with ids the stream has so far."""
        return self.num_before(stream, len(stream.log))

    def num_before(self, stream: Stream, cursor: int) -> int:
        """Return how many events with ids the log's first `cursor` events make."""
        message = _Message(self, stream)
        return sum(len(message.frames(event)) for event in stream.log.after(0, cursor))

    def resume(self, stream: Stream, first: int) -> tuple[int, "MessageFrames"]:
        """Return the cursor and the framer for the events from id `first` on."""
        message = _Message(self, stream)
        cursor = num_before = 0
        for event in stream.log.after(0):
            num_frames = len(message.frames(event))
            if num_before + num_frames > first:
                break
            num_before += num_frames
            cursor += 1
        message = _Message(self, stream)
        for event in stream.log.after(0, cursor):
            message.frames(event)
        frames = MessageFrames(self, stream, with_ids=True)
        frames.go_on(message, num_before, first)
        return cursor, frames

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the whole message of the one stream, which has finished."""
        (stream,) = streams
        end = stream.ended
        assert isinstance(end, Finish)
        deltas = [each for each in stream.log.after(0) if isinstance(each, Delta)]
        shown = [each for each in deltas if not self.hides(each)]
        return {
            **self.message(content_of(shown, is_omitted=self.display == "omitted")),
            **self.ending(end, has_called=any(isinstance(each, ToolCall) for each in deltas)),
            "usage": usage_fields(end.usage, num_reasoning_tokens(deltas)),
        }

    def message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a message with this content, without its end."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
        }

    def ending(self, end: Finish, *, has_called: bool) -> dict[str, Any]:
        """Return the fields that say how the message ended; `has_called`: it calls tools."""
        return ending_fields(end, has_called=has_called, context_length=self.context_length)

    def hides(self, delta: Delta) -> bool:
        """Return True if the client sees nothing of this delta."""
        return self.display == "hidden" and isinstance(delta, Reasoning)


class MessageFrames:
    """Frames one stream for one reader. `with_ids` gives each frame an id."""

    heartbeat = PING

    def __init__(self, form: MessageForm, stream: Stream, *, with_ids: bool) -> None:
        self._message = _Message(form, stream)
        self._id_line = id_line(stream.id) if with_ids else b""
        self._next_id = 0
        self._first_id = 0
        """The reader has the frames with ids before this one."""

    def go_on(self, message: "_Message", next_id: int, first_id: int) -> None:
        """Go on with a message whose next frame has the id `next_id`, from `first_id` on."""
        self._message, self._next_id, self._first_id = message, next_id, first_id

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""
        frames = [
            frame
            for _, events in batches
            for event in events
            for frame in self._message.frames(event)
        ]
        return b"".join(self._numbered(frames) if self._id_line else frames)

    def _numbered(self, frames: list[bytes]) -> Iterator[bytes]:
        for frame in frames:
            event_id = self._next_id
            self._next_id = event_id + 1
            if event_id >= self._first_id:
                yield self._id_line % event_id
                yield frame

    def straight(self) -> Callable[[str], bytes]:
        """Return what frames the next plain delta, which may begin a block."""
        return self._delta

    def _delta(self, text: str) -> bytes:
        message = self._message
        if message.kind != "text":
            return self.frame([(0, [Delta(text, 0)])])
        frame = b"%b%b%b" % (message.before, _encode(text), _AFTER)
        if not self._id_line:
            return frame
        event_id = self._next_id
        self._next_id = event_id + 1
        return self._id_line % event_id + frame


class _Message:
    """The frames of one message, and the block that is open."""

    def __init__(self, form: MessageForm, stream: Stream) -> None:
        self._form = form
        self._stream = stream
        self._has_begun = False
        self._has_called = False
        self._index = -1
        self.kind: Kind | None = None
        """The kind of the block that is open, None if none is."""
        self.before = b""
        """The bytes before the text of the block's next delta."""
        self._thoughts: list[str] = []

    def frames(self, event: Event) -> list[bytes]:
        """Return the frames of the next event: none, one, or several."""
        if not isinstance(event, Delta):
            return self._last_frames(event)
        frames = [] if self._has_begun else self._opening()
        if self._form.hides(event):
            return frames
        if begins_block(event, self.kind):
            frames += self._end_of_block()
            frames.append(self._begin_block(event))
        if self.kind == "thinking":
            self._thoughts.append(event.text)
            if self._form.display == "omitted":
                return frames
        if event.text:
            frames.append(b"%b%b%b" % (self.before, _encode(event.text), _AFTER))
        return frames

    def _opening(self) -> list[bytes]:
        """Return the frames before the first block. The answer has no token yet."""
        self._has_begun = True
        usage = self._stream.usage
        message = {
            **self._form.message([]),
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_fields(Usage(usage.prompt_tokens, 0, usage.cached_tokens)),
        }
        return [_event("message_start", message=message), PING]

    def _begin_block(self, delta: Delta) -> bytes:
        self._index += 1
        self.kind = kind_of(delta)
        self._has_called = self._has_called or self.kind == "tool_use"
        self.before = _DELTA % (self._index, *_DELTAS[self.kind])
        return _event("content_block_start", index=self._index, content_block=empty_block(delta))

    def _end_of_block(self) -> list[bytes]:
        frames = []
        if self.kind == "thinking":
            text, self._thoughts = "".join(self._thoughts), []
            signature = signature_of(text, is_omitted=self._form.display == "omitted")
            delta = {"type": "signature_delta", "signature": signature}
            frames.append(_event("content_block_delta", index=self._index, delta=delta))
        if self.kind is not None:
            frames.append(_event("content_block_stop", index=self._index))
        self.kind = None
        return frames

    def _last_frames(self, end: TerminalEvent) -> list[bytes]:
        """Return the frames of the end. A failure ends the response without `message_stop`."""
        if isinstance(end, Failure):
            return [_event("error", error=failure_object(end))]
        frames = [] if self._has_begun else self._opening()
        frames += self._end_of_block()
        usage = usage_fields(end.usage, num_reasoning_tokens(self._stream.log.after(0)))
        delta = self._form.ending(end, has_called=self._has_called)
        ignored = {"ignored": end.late_notes} if end.late_notes else {}
        frames.append(_event("message_delta", delta=delta, usage=usage, **ignored))
        return [*frames, _event("message_stop")]


def _event(name: str, **fields: Any) -> bytes:
    return _FRAME % (name.encode(), _encode({"type": name, **fields}))
