"""Events of a response's streams → OpenAI's objects, as chunks on a wire and in one piece.

In: the events of one stream, or of several, one for each choice. Out: `chat.completion.chunk` and
`text_completion` frames; all but a delta's text is made once for each response. The first frame of
a choice names the role and holds the echo, its last one the finish reason; after the last choice
come the usage, where it was asked for, and `[DONE]`.

Finish reasons are mapped here and nowhere else. `stop` and `length` are OpenAI's own. `cancelled`
and `deadline` are none of theirs: they become `length`, their word for an answer that is not whole,
and the choice says `"stop_reason": "cancelled"` beside it. A failure is an error object instead of
a chunk. A choice that calls tools ends with `tool_calls`, where it would have with `stop`. What
the model thinks is `reasoning_content`, beside the `content`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import msgspec

from penstock.api.dialect import Form
from penstock.api.openai.errors import failure_object
from penstock.events import (
    Delta,
    Event,
    Failure,
    Finish,
    Reasoning,
    TerminalEvent,
    TokenLogprob,
    ToolCall,
    Usage,
)
from penstock.stream.reader import Batch
from penstock.stream.stream import Stream

DONE = b"[DONE]"

_encode = msgspec.json.encode
_FRAME = b"data: %b\n\n"
_ID = b"id: %d\n"
_PLACE = "\ufdd0"  # a character that stands in no text stands where the text will


class ChunkForm(Form, frozen=True):
    """How the streams of one response are shown as OpenAI's objects.

    `id`, `created` and `model` stand in every object. `include_usage` adds a last chunk with the
    usage, `continuous_usage` puts the usage so far into every chunk. `echoes` has the text that
    each choice begins with. `num_per_prompt` is the number of choices of one prompt, whose tokens
    count once.
    """

    is_chat: ClassVar[bool]
    id: str
    created: int
    model: str
    include_usage: bool = False
    continuous_usage: bool = False
    has_logprobs: bool = False
    echoes: tuple[str, ...] = ("",)
    num_per_prompt: int = 1

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> "ChunkFrames":
        """Return what frames these streams from their beginning."""
        return ChunkFrames(self, streams, with_ids=with_ids)

    def num_events(self, stream: Stream) -> int:
        """Return how many events have ids so far: those of the log, and those after its end."""
        num_after_end = 0
        if stream.ended is not None:
            num_after_end = 2 if self.ends_with_usage(stream.ended) else 1
        return len(stream.log) + num_after_end

    def resume(self, stream: Stream, first: int) -> tuple[int, "ChunkFrames"]:
        """Return the cursor and the framer for the events from id `first` on."""
        cursor = first
        if stream.ended is not None:
            cursor = min(first, len(stream.log) - 1)
        return cursor, ChunkFrames(self, [stream], cursor, first - cursor, with_ids=True)

    def ends_with_usage(self, end: TerminalEvent) -> bool:
        """Whether a chunk with the usage follows the last choice's end: not after a failure."""
        return self.include_usage and isinstance(end, Finish)

    # Objects.

    def chunk(self, choices: list[Any], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """One chunk; `usage` is left out where nobody asked for any."""
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = usage
        return chunk

    def choice(
        self, index: int, text: Any, logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One choice of a chunk. `text` is the delta's fields in a chat."""
        content = {"delta": text} if self.is_chat else {"text": text}
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """The response in one piece, of streams that have all finished."""
        return {
            "id": self.id,
            "object": "chat.completion" if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._whole_choice(n, stream) for n, stream in enumerate(streams)],
            "usage": self.usage(streams),
        }

    def usage(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """That of all choices, which have ended: each answer, and each prompt once."""
        usages = [_end_of(stream).usage for stream in streams]
        usage = Usage(
            sum(usage.prompt_tokens for usage in usages[:: self.num_per_prompt]),
            sum(usage.completion_tokens for usage in usages),
        )
        return self.usage_object(
            usage, sum(reasoning_tokens(each.log.after(0)) for each in streams)
        )

    def usage_object(self, usage: Usage, num_reasoning: int) -> dict[str, Any]:
        """Tokens, under OpenAI's names; those of reasoning only in a chat."""
        tokens: dict[str, Any] = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }
        if self.is_chat:
            tokens["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
        return tokens

    def _whole_choice(self, number: int, stream: Stream) -> dict[str, Any]:
        end = _end_of(stream)
        assert isinstance(end, Finish)
        echo, logprobs = self.echoes[number], None
        if self.has_logprobs:
            logprobs = self.logprobs(stream.log.after(0), len(echo))
        content: dict[str, Any] = {"text": echo + stream.log.text()}
        if self.is_chat:
            content = {"message": whole_message(stream.log.after(0))}
        has_called = "tool_calls" in content.get("message", {})
        return {"index": number, **content, "logprobs": logprobs, **ending(end, has_called)}

    def logprobs(self, events: Sequence[Event], offset: int) -> dict[str, Any]:
        """Those of these deltas; their text begins `offset` characters into the choice's."""
        deltas = [event for event in events if isinstance(event, Delta)]
        if self.is_chat:
            content = [chat_logprob(each) for delta in deltas for each in delta.logprobs]
            return {"content": content, "refusal": None}
        return completion_logprobs(deltas, offset)


class ChatForm(ChunkForm, frozen=True):
    """How the answer of `/v1/chat/completions` is shown."""

    dialect = "openai.chat"
    is_chat = True


class CompletionForm(ChunkForm, frozen=True):
    """How the answer of `/v1/completions` is shown."""

    dialect = "openai.completions"
    is_chat = False


class ChunkFrames:
    """Frames the streams of one response for one reader, from `cursor` on.

    `with_ids`: each frame has an id, which for one of the log's events is its index there.
    `num_sent`: frames of the terminal event that the reader has already. Both are only for a
    stream without company.
    """

    def __init__(
        self,
        form: ChunkForm,
        streams: Sequence[Stream],
        cursor: int = 0,
        num_sent: int = 0,
        *,
        with_ids: bool = False,
    ) -> None:
        self._form = form
        self._streams = streams
        self._choices = [
            _ChoiceFrames(form, number, stream, cursor) for number, stream in enumerate(streams)
        ]
        self._with_ids = with_ids
        self._next_id = cursor
        self._num_sent = num_sent
        self._num_open = len(streams)
        self._is_over = False
        # OpenAI's SDK puts the choices of a chat in the order in which they first come, and fails
        # where that is not theirs.
        self._must_open = form.is_chat and len(streams) > 1

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""
        parts: list[bytes] = []
        if self._must_open and batches and not isinstance(batches[0][1][0], Failure):
            self._must_open = False
            parts += [choice.opening() for choice in self._choices]
        for number, events in batches:
            choice = self._choices[number]
            for event in events:
                if self._is_over:  # after a failure, the other choices say nothing more
                    return b"".join(parts)
                if isinstance(event, Delta):
                    if self._with_ids:
                        parts.append(_ID % self._next_id)
                        self._next_id += 1
                    parts += choice.delta(event)
                else:
                    parts += self._end(number, event)
        return b"".join(parts)

    def _end(self, number: int, end: TerminalEvent) -> list[bytes]:
        """A choice's last frame, and after the last choice what ends the response."""
        self._num_open -= 1
        if isinstance(end, Failure):
            frames = [_encode({"error": failure_object(end)})]
        else:
            frames = [_encode(self._choices[number].last_chunk(end))]
        self._is_over = not self._num_open or isinstance(end, Failure)
        if self._is_over:
            if self._form.ends_with_usage(end):
                frames.append(_encode(self._form.chunk([], self._form.usage(self._streams))))
            frames.append(DONE)
        parts: list[bytes] = []
        for count, frame in enumerate(frames):
            if count >= self._num_sent:
                if self._with_ids:
                    parts.append(_ID % (self._next_id + count))
                parts.append(_FRAME % frame)
        return parts


class _ChoiceFrames:
    """The frames of one choice, from `cursor` on."""

    def __init__(self, form: ChunkForm, number: int, stream: Stream, cursor: int) -> None:
        self._form = form
        self._number = number
        self._stream = stream
        self._echo = form.echoes[number]
        self._has_begun = cursor > 0
        sent = [event for event in stream.log.after(0, cursor) if isinstance(event, Delta)]
        self._has_called = any(isinstance(delta, ToolCall) for delta in sent)
        self._num_tokens = sum(delta.num_tokens for delta in sent)
        self._num_reasoning = reasoning_tokens(sent)
        self._num_characters = len(self._echo) + sum(len(delta.text) for delta in sent)
        # What stands around the text in every frame but the first, unless more than it varies.
        text: Any = {"content": _PLACE} if form.is_chat else _PLACE
        frame = _FRAME % _encode(form.chunk([form.choice(number, text)]))
        self._before, _, self._after = frame.rpartition(_encode(_PLACE))
        self._varies = form.has_logprobs or form.continuous_usage

    def delta(self, delta: Delta) -> tuple[bytes, ...]:
        """A delta's frame, in parts."""
        is_text = delta.__class__ is Delta
        if is_text and self._has_begun and not self._varies:
            return self._before, _encode(delta.text), self._after
        text: Any = delta.text if self._has_begun else self._echo + delta.text
        if self._form.is_chat:
            role = {} if self._has_begun else {"role": "assistant"}
            text = {**role, **delta_fields(delta)}
            self._has_called = self._has_called or isinstance(delta, ToolCall)
        self._has_begun = True
        logprobs = None
        if self._form.has_logprobs and is_text:
            logprobs = self._form.logprobs([delta], self._num_characters)
        self._num_characters += len(delta.text)
        self._num_tokens += delta.num_tokens
        if self._form.continuous_usage:
            self._num_reasoning += reasoning_tokens([delta])
        choice = self._form.choice(self._number, text, logprobs)
        return (_FRAME % _encode(self._form.chunk([choice], self._usage_so_far())),)

    def opening(self) -> bytes:
        """The frame that says whose words come, before there are any."""
        self._has_begun = True
        choice = self._form.choice(self._number, {"role": "assistant", "content": ""})
        return _FRAME % _encode(self._form.chunk([choice], self._usage_so_far()))

    def _usage_so_far(self) -> dict[str, Any] | None:
        if not self._form.continuous_usage:
            return None
        so_far = Usage(self._stream.usage.prompt_tokens, self._num_tokens)
        return self._form.usage_object(so_far, self._num_reasoning)

    def last_chunk(self, end: Finish) -> dict[str, Any]:
        """The chunk with the finish reason; the only one of an answer without text."""
        text: Any = "" if self._has_begun else self._echo
        if self._form.is_chat:
            text = {} if self._has_begun else {"role": "assistant", "content": text}
        choice = {**self._form.choice(self._number, text), **ending(end, self._has_called)}
        usage = None
        if self._form.continuous_usage:
            usage = self._form.usage_object(end.usage, self._num_reasoning)
        return self._form.chunk([choice], usage)


def delta_fields(delta: Delta) -> dict[str, Any]:
    """What a chunk of a chat says of a delta."""
    if isinstance(delta, Reasoning):
        return {"reasoning_content": delta.text}
    if isinstance(delta, ToolCall):
        called: dict[str, Any] = {"index": delta.number, "function": {"arguments": delta.text}}
        if delta.id:
            called = {"index": delta.number, **call_object(delta.id, delta.name, delta.text)}
        return {"tool_calls": [called]}
    return {"content": delta.text}


def whole_message(events: Sequence[Event]) -> dict[str, Any]:
    """What a choice of a chat said: its text, what it thought and called before and after that."""
    texts = [event.text for event in events if event.__class__ is Delta]
    thoughts = [event.text for event in events if isinstance(event, Reasoning)]
    parts = [event for event in events if isinstance(event, ToolCall)]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if parts:
        message["content"] = message["content"] or None
        message["tool_calls"] = [
            call_object(first.id, first.name, "".join(p.text for p in parts if p.number == number))
            for number, first in enumerate(part for part in parts if part.id)
        ]
    return message


def call_object(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call of a tool."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def ending(end: Finish, has_called: bool = False) -> dict[str, str]:
    """How a choice ended, in OpenAI's words; `has_called`: it has calls of tools."""
    if has_called and end.reason == "stop":
        return {"finish_reason": "tool_calls"}
    if end.reason in ("cancelled", "deadline"):
        return {"finish_reason": "length", "stop_reason": end.reason}
    return {"finish_reason": end.reason}


def reasoning_tokens(events: Iterable[Event]) -> int:
    """Tokens of what the model thought; a mark counts with what follows it."""
    return sum(event.num_tokens for event in events if isinstance(event, Reasoning))


def chat_logprob(logprob: TokenLogprob) -> dict[str, Any]:
    """One token's in a chat."""

    def entry(token: bytes, value: float) -> dict[str, Any]:
        return {"token": token.decode("utf-8", "replace"), "logprob": value, "bytes": list(token)}

    top = [entry(token, value) for token, value in logprob.top]
    return {**entry(logprob.token, logprob.logprob), "top_logprobs": top}


def completion_logprobs(deltas: list[Delta], offset: int) -> dict[str, Any]:
    """Those of a completion: a list for each kind."""
    tokens, values, tops, offsets = [], [], [], []
    for delta in deltas:
        at = offset
        offset += len(delta.text)
        for each in delta.logprobs:
            token = each.token.decode("utf-8", "replace")
            top = {name.decode("utf-8", "replace"): value for name, value in each.top}
            tokens.append(token)
            values.append(each.logprob)
            tops.append({**top, token: each.logprob})
            offsets.append(at)
            at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _end_of(stream: Stream) -> TerminalEvent:
    assert stream.ended is not None
    return stream.ended
