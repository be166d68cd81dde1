"""Turns a stream's events into the events of llama-server's `/completion`, and its whole answer."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from penstock.api.dialect import PLACE, Form, around_place
from penstock.api.event_ids import id_line
from penstock.api.openai.errors import failure_object
from penstock.events import Delta, Failure, Finish, TerminalEvent
from penstock.stream.lane import Frames
from penstock.stream.reader import Batch
from penstock.stream.stream import Stream

_encode = msgspec.json.encode
_FRAME = b"data: %b\n\n"
_STOP_TYPES = {"stop": "eos", "length": "limit"}


class CompletionForm(Form, frozen=True):
    """How the answer of `/completion` is shown. An event's number is its index in the log."""

    dialect = "neighbors.completion"
    model: str

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> "CompletionFrames":
        """Return what frames the one stream from its beginning."""
        return CompletionFrames(self, id_line=id_line(streams[0].id) if with_ids else b"")

    def num_events(self, stream: Stream) -> int:
        """Return the length of the log."""
        return len(stream.log)

    def resume(self, stream: Stream, first: int) -> tuple[int, "CompletionFrames"]:
        """Return the cursor and the framer for the events from id `first` on."""
        return first, CompletionFrames(self, first, id_line(stream.id))

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the whole answer of the one stream, which has finished."""
        (stream,) = streams
        assert isinstance(stream.ended, Finish)
        return self.last(stream.ended, stream.log.text())

    def part(self, text: str) -> dict[str, Any]:
        """Return an event with a part of the answer."""
        return {"index": 0, "content": text, "tokens": [], "stop": False, "id_slot": -1}

    def last(self, end: Finish, text: str = "") -> dict[str, Any]:
        """Return the last event, or the whole answer with its `text`."""
        is_word = end.stop_string is not None
        last: dict[str, Any] = {
            **self.part(text),
            "stop": True,
            "model": self.model,
            "tokens_predicted": end.usage.completion_tokens,
            "tokens_evaluated": end.usage.prompt_tokens,
            "tokens_cached": end.usage.cached_tokens,
            "truncated": False,
            "stop_type": "word" if is_word else _STOP_TYPES.get(end.reason, "none"),
            "stopping_word": end.stop_string or "",
            "timings": timings_of(end),
        }
        if end.reason not in _STOP_TYPES:
            last["finish_reason"] = end.reason
        return last | ({"ignored": end.late_notes} if end.late_notes else {})


def timings_of(end: Finish) -> dict[str, Any]:
    """Return llama-server's `timings`, in milliseconds."""
    timings, usage = end.timings, end.usage
    first = timings.time_to_first_token
    until_first = timings.total_time if first is None else first
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": usage.prompt_tokens - usage.cached_tokens,
        "prompt_ms": round(1000 * (until_first - timings.queue_time), 3),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(1000 * (timings.total_time - until_first), 3),
        "predicted_per_second": timings.tokens_per_second,
    }


class CompletionFrames:
    """Frames one stream for one reader, from the event at `index` on.

    `id_line` is the line of an event's id, with `%d` in the place of the number; empty without ids.
    """

    def __init__(self, form: CompletionForm, index: int = 0, id_line: bytes = b"") -> None:
        self._form = form
        self._index = index
        self._id_line = id_line
        self._ends = around_place(_FRAME % _encode(form.part(PLACE)))

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""
        return b"".join(
            self._text(event.text) if isinstance(event, Delta) else self._last(event)
            for _, events in batches
            for event in events
        )

    def straight(self) -> Frames:
        """Return how the next plain deltas are framed."""
        with_id: Callable[[str], bytes] = self._text
        return with_id if self._id_line else self._ends

    def _text(self, text: str) -> bytes:
        before, after = self._ends
        return self._numbered(b"%b%b%b" % (before, _encode(text), after))

    def _last(self, end: TerminalEvent) -> bytes:
        if isinstance(end, Failure):
            return self._numbered(_FRAME % _encode({"error": failure_object(end)}))
        return self._numbered(_FRAME % _encode(self._form.last(end)))

    def _numbered(self, frame: bytes) -> bytes:
        if not self._id_line:
            return frame
        index, self._index = self._index, self._index + 1
        return self._id_line % index + frame
