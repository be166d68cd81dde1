"""Turns a stream's events into Ollama's lines, and into its whole answer.

In: the events of one stream. Out: JSON objects, one a line (application/x-ndjson). A line has a
delta, and the last one says how the answer ended. A tool call comes whole, when it is complete.
Everything but a delta's text is made once for each response, also the time: `created_at` is when
the request came, in every line.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from penstock.api.dialect import PLACE, Form, around_place
from penstock.api.ollama.errors import failure_object
from penstock.api.openai.objects import chat_logprobs
from penstock.api.tools import arguments_of
from penstock.events import Delta, Event, Failure, Finish, Reasoning, ToolCall
from penstock.stream.lane import Frames
from penstock.stream.reader import Batch
from penstock.stream.stream import Stream
from penstock.web.delivery import NDJSON

NANOSECONDS = 1_000_000_000

# Python's `str.splitlines`, with which httpx and Ollama's client find lines, takes these
# characters for ends of lines. They occur only in strings, where JSON has escapes for them.
_LINE_ENDS = tuple((char.encode(), b"\\u%04x" % ord(char)) for char in "\u2028\u2029\x85")


def _encode(value: Any) -> bytes:
    """Return the JSON of a value, on one line."""
    encoded = msgspec.json.encode(value)
    if not encoded.isascii():
        for char, escape in _LINE_ENDS:
            encoded = encoded.replace(char, escape)
    return encoded


class LineForm(Form, frozen=True):
    """How an answer is shown as Ollama's objects, which all have the `model` and `created_at`.

    `hides_thinking` leaves out the model's reasoning, which still counts. A resumable stream's
    events are its lines.
    """

    model: str
    created_at: str
    hides_thinking: bool = False
    has_logprobs: bool = False

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> "LineFrames":
        """Return what frames the one stream from its beginning. Lines have no ids."""
        return LineFrames(self, Lines(self))

    def num_events(self, stream: Stream) -> int:
        """Return how many lines the stream has so far."""
        return self.num_before(stream, len(stream.log))

    def num_before(self, stream: Stream, cursor: int) -> int:
        """Return how many lines the log's first `cursor` events make."""
        lines = Lines(self)
        return sum(len(lines.of(event)) for event in stream.log.after(0, cursor))

    def resume(self, stream: Stream, first: int) -> tuple[int, "LineFrames"]:
        """Return the cursor and the framer for the lines from number `first` on."""
        lines = Lines(self)
        cursor = num_before = 0
        for event in stream.log.after(0):
            num_lines = len(lines.of(event))
            if num_before + num_lines > first:
                break
            num_before += num_lines
            cursor += 1
        lines = Lines(self)
        for event in stream.log.after(0, cursor):
            lines.of(event)
        return cursor, LineFrames(self, lines, num_sent=first - num_before)

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the whole answer of the one stream, which has finished."""
        (stream,) = streams
        end = stream.ended
        assert isinstance(end, Finish)
        deltas = [each for each in stream.log.after(0) if isinstance(each, Delta)]
        texts = [each.text for each in deltas if each.__class__ is Delta]
        thoughts = [] if self.hides_thinking else [each for each in deltas if _is_thought(each)]
        answer = self.part(
            "".join(texts), "".join(each.text for each in thoughts), calls_of(deltas)
        )
        if self.has_logprobs:
            answer["logprobs"] = logprobs_of(deltas)
        return {**self.head(), **answer, **ending_fields(end)}

    def head(self) -> dict[str, Any]:
        """Return the fields with which every object begins."""
        return {"model": self.model, "created_at": self.created_at}

    def part(
        self, text: str, thinking: str = "", calls: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        """Return the fields with a part of the answer, or with all of it."""
        raise NotImplementedError


class ChatForm(LineForm, frozen=True):
    """How the answer of `/api/chat` is shown."""

    dialect = "ollama.chat"

    def part(
        self, text: str, thinking: str = "", calls: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        """Return the `message`."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class GenerateForm(LineForm, frozen=True):
    """How the answer of `/api/generate` is shown."""

    dialect = "ollama.generate"

    def part(
        self, text: str, thinking: str = "", calls: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        """Return the `response`."""
        return {"response": text, **({"thinking": thinking} if thinking else {})}


class LineFrames:
    """Frames one stream for one reader, who already has `num_sent` of the next lines."""

    media_type = NDJSON
    heartbeat = b" "
    """White space before a line's JSON, which every parser skips."""

    def __init__(self, form: LineForm, lines: "Lines", num_sent: int = 0) -> None:
        self._form = form
        self._lines = lines
        self._num_sent = num_sent

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the lines of these events, in one piece."""
        lines = [
            line for _, events in batches for event in events for line in self._lines.of(event)
        ]
        sent, self._num_sent = self._num_sent, max(0, self._num_sent - len(lines))
        return b"".join(lines[sent:])

    def straight(self) -> Frames | None:
        """Return how the next plain deltas are framed; None if more than the text may vary."""
        return None if self._form.has_logprobs else self._lines.of_text


class Lines:
    """Makes the lines of one answer, from its first event on."""

    def __init__(self, form: LineForm) -> None:
        self._form = form
        self._call: list[ToolCall] = []
        """The parts of the call that is not complete."""
        # The bytes around the text of a plain delta.
        line = _line({**form.head(), **form.part(PLACE), "done": False})
        self._before, self._after = around_place(line)

    def of(self, event: Event) -> list[bytes]:
        """Return the lines of the next event: none, one or two."""
        if isinstance(event, ToolCall):
            lines = self._end_call() if event.id else []
            self._call.append(event)
            return lines
        lines = self._end_call()
        if isinstance(event, Failure):
            return [*lines, _line(failure_object(event))]
        if isinstance(event, Finish):
            return [*lines, self._last(event)]
        if _is_thought(event):
            if event.text and not self._form.hides_thinking:
                lines.append(self._part(self._form.part("", event.text)))
        elif self._form.has_logprobs:
            part = {**self._form.part(event.text), "logprobs": logprobs_of([event])}
            lines.append(self._part(part))
        elif event.text:
            lines.append(self.of_text(event.text))
        return lines

    def of_text(self, text: str) -> bytes:
        """Return the line of a plain delta, after that of a call before it."""
        line = b"%b%b%b" % (self._before, _encode(text), self._after)
        return b"".join((*self._end_call(), line)) if self._call else line

    def _end_call(self) -> list[bytes]:
        if not self._call:
            return []
        calls, self._call = calls_of(self._call), []
        return [self._part(self._form.part("", "", calls))]

    def _part(self, part: dict[str, Any]) -> bytes:
        return _line({**self._form.head(), **part, "done": False})

    def _last(self, end: Finish) -> bytes:
        ignored = {"ignored": end.late_notes} if end.late_notes else {}
        return _line({**self._form.head(), **self._form.part(""), **ending_fields(end), **ignored})


def _line(fields: dict[str, Any]) -> bytes:
    return _encode(fields) + b"\n"


def _is_thought(delta: Delta) -> bool:
    return isinstance(delta, Reasoning)


def calls_of(deltas: Iterable[Delta]) -> list[dict[str, Any]]:
    """Return the tool calls in these deltas, each whole."""
    return [
        {
            "id": parts[0].id,
            "function": {
                "index": parts[0].number,
                "name": parts[0].name,
                "arguments": arguments_of("".join(part.text for part in parts)),
            },
        }
        for parts in _parts_of_calls(deltas)
    ]


def _parts_of_calls(deltas: Iterable[Delta]) -> Iterator[list[ToolCall]]:
    parts: list[ToolCall] = []
    for delta in deltas:
        if not isinstance(delta, ToolCall):
            continue
        if delta.id and parts:
            yield parts
            parts = []
        parts.append(delta)
    if parts:
        yield parts


def logprobs_of(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    """Return the log probabilities of the answer's tokens, which OpenAI shows in the same form."""
    shown = [delta for delta in deltas if delta.__class__ is Delta]
    content: list[dict[str, Any]] = chat_logprobs(shown)["content"]
    return content


def ending_fields(end: Finish) -> dict[str, Any]:
    """Return the fields that say how the answer ended. Durations are in nanoseconds.

    The time in the queue counts as `load_duration`, as in Ollama. `done_reason` has Penstock's own
    words `cancelled` and `deadline`, for which Ollama has none.
    """
    timings, usage = end.timings, end.usage
    first = timings.time_to_first_token
    until_first = timings.total_time if first is None else first
    return {
        "done": True,
        "done_reason": end.reason,
        "total_duration": _nanoseconds(timings.total_time),
        "load_duration": _nanoseconds(timings.queue_time),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(until_first - timings.queue_time),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timings.total_time - until_first),
    }


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * NANOSECONDS))
