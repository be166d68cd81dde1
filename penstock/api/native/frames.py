"""Turns a stream's events into the native API's Server-Sent Events, and into its whole answer.

Everything but a delta's text and index is prepared at import. A frame is one event with one `data:`
line: JSON escapes line breaks, so no text can break out of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from penstock.api.dialect import Form
from penstock.api.event_ids import id_line
from penstock.api.openai.objects import (
    all_token_ids,
    chat_logprobs,
    prompt_logprobs,
    token_ids_of,
)
from penstock.events import Delta, Event, Failure, Finish, TerminalEvent, finish_reason_of
from penstock.stream.reader import Batch
from penstock.stream.stream import Stream

_encode = msgspec.json.encode
_DELTA = b'data: {"token":%b,"index":%d,"finished":false}\n\n'


class NativeFrames:
    """Frames one stream for one reader, from the event at `index` on.

    An event's index is its place in the log, counted from 0. `id_line` is the line of its id, with
    `%d` for the index, or empty. An event has the same bytes for every reader.
    """

    __slots__ = ("_id_line", "_index")

    def __init__(self, index: int = 0, id_line: bytes = b"") -> None:
        self._index = index
        self._id_line = id_line

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""
        parts: list[bytes] = []
        index = self._index
        for _, events in batches:
            for event in events:
                if self._id_line:
                    parts.append(self._id_line % index)
                if isinstance(event, Delta):
                    parts.append(_DELTA % (_encode(event.text), index))
                else:
                    parts.append(b"data: %b\n\n" % _encode(self._last_event(event, index)))
                index += 1
        self._index = index
        return b"".join(parts)

    def straight(self) -> Callable[[str], bytes] | None:
        """Return what frames the next plain delta: its number is in its frame."""
        return self._delta

    def _delta(self, text: str) -> bytes:
        index = self._index
        self._index = index + 1
        frame = _DELTA % (_encode(text), index)
        return self._id_line % index + frame if self._id_line else frame

    def _last_event(self, event: TerminalEvent, index: int) -> dict[str, Any]:
        end = {"token": "", "index": index, "finished": True, **ending(event)}
        if self._id_line and isinstance(event, Failure) and index:
            end["error"]["resume_after"] = index - 1
        return end


class DetailedFrames(NativeFrames):
    """Frames a stream whose tokens have log probabilities or ids."""

    __slots__ = ("_form", "_stream")

    def __init__(
        self, form: "DetailedForm", stream: Stream, index: int = 0, id_line: bytes = b""
    ) -> None:
        super().__init__(index, id_line)
        self._form = form
        self._stream = stream

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""
        parts: list[bytes] = []
        for _, events in batches:
            for index, event in enumerate(events, self._index):
                if self._id_line:
                    parts.append(self._id_line % index)
                parts.append(b"data: %b\n\n" % _encode(self._shown(event, index)))
            self._index += len(events)
        return b"".join(parts)

    def straight(self) -> None:
        """Return None: more than the text varies in a frame."""

    def _shown(self, event: Event, index: int) -> dict[str, Any]:
        if isinstance(event, Delta):
            shown = {"token": event.text, "index": index, "finished": False}
            return shown | self._form.details([event])
        end = self._last_event(event, index)
        return end | self._form.last_details(self._stream, event)


class NativeForm(Form, frozen=True):
    """The native API's form of an answer, which has no options."""

    dialect = "native"

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> NativeFrames:
        """Return what frames the one stream."""
        return NativeFrames(id_line=id_line(streams[0].id) if with_ids else b"")

    def num_events(self, stream: Stream) -> int:
        """Return the length of the log: an event's id is its index there."""
        return len(stream.log)

    def resume(self, stream: Stream, first: int) -> tuple[int, NativeFrames]:
        """Return the cursor and the framer for the events from id `first` on."""
        return first, NativeFrames(first, id_line(stream.id))

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the one JSON object of a whole answer."""
        (stream,) = streams
        end = stream.ended
        assert isinstance(end, Finish)
        fields = ending(end)
        return {
            "text": stream.log.text(),
            "usage": fields["usage"],
            "request_time": end.timings.total_time,
            "finish_reason": fields["finish_reason"],
            "timings": msgspec.to_builtins(end.timings),
        }


class DetailedForm(NativeForm, frozen=True):
    """The form of an answer whose tokens have log probabilities or ids.

    `has_prompt_logprobs` adds the log probabilities of the prompt's tokens to a whole answer.
    """

    has_logprobs: bool = False
    has_token_ids: bool = False
    has_prompt_logprobs: bool = False

    dialect = "native.detailed"

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> NativeFrames:
        """Return what frames the one stream."""
        return self.resume(streams[0], 0, with_ids=with_ids)[1]

    def resume(
        self, stream: Stream, first: int, *, with_ids: bool = True
    ) -> tuple[int, NativeFrames]:
        """Return the cursor and the framer for the events from id `first` on."""
        return first, DetailedFrames(self, stream, first, id_line(stream.id) if with_ids else b"")

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the one JSON object of a whole answer."""
        (stream,) = streams
        end = stream.ended
        assert isinstance(end, Finish)
        deltas = [event for event in stream.log.after(0) if isinstance(event, Delta)]
        whole = super().whole(streams) | self.details(deltas) | self.last_details(stream, end)
        if self.has_token_ids:
            whole["token_ids"] = all_token_ids(deltas, end)
        if self.has_prompt_logprobs:
            whole["prompt_logprobs"] = prompt_logprobs(stream.prompt_logprobs_found or ())
        return whole

    def details(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """Return what the client asked to know about the tokens of these deltas."""
        details: dict[str, Any] = {}
        if self.has_logprobs:
            details["logprobs"] = chat_logprobs(deltas)["content"]
        if self.has_token_ids:
            details["token_ids"] = token_ids_of(deltas)
        return details

    def last_details(self, stream: Stream, end: TerminalEvent) -> dict[str, Any]:
        """Return what the client asked to know and learns at the end: ids without text."""
        if not self.has_token_ids or isinstance(end, Failure):
            return {}
        return {"token_ids": end.token_ids, "prompt_token_ids": stream.prompt_ids}


def ending(event: TerminalEvent) -> dict[str, Any]:
    """Return the fields of a terminal event in the native API."""
    fields: dict[str, Any] = {
        "finish_reason": finish_reason_of(event),
        "usage": {
            "prompt_tokens": event.usage.prompt_tokens,
            "completion_tokens": event.usage.completion_tokens,
            "total_tokens": event.usage.total_tokens,
            "cached_tokens": event.usage.cached_tokens,
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
    if not event.reproducible:
        fields["reproducible"] = False
    if event.late_notes:
        fields["ignored"] = event.late_notes
    return fields
