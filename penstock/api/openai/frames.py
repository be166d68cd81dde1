"""Turns the streams of one answer into OpenAI's chunks, and into its whole response.

In: the events of one stream, or of several, one for each choice. Out: frames with
`chat.completion.chunk` and `text_completion` objects. Everything but a delta's text is made once
for each response. A choice's first frame has the role or the echo, its last one the finish reason.
After the last choice come the usage, if the client asked for it, and `[DONE]`. A failure is an
error object instead of a chunk.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from penstock.api.dialect import PLACE, Form, around_place
from penstock.api.event_ids import id_line
from penstock.api.openai.errors import failure_object
from penstock.api.openai.objects import (
    all_token_ids,
    chat_logprobs,
    completion_logprobs,
    delta_fields,
    echoed_logprobs,
    ending_fields,
    function_delta_fields,
    message_fields,
    num_token_characters,
    prompt_logprobs,
    token_ids_of,
    usage_fields,
)
from penstock.events import (
    Delta,
    Failure,
    Finish,
    Reasoning,
    TerminalEvent,
    ToolCall,
    Usage,
    num_reasoning_tokens,
)
from penstock.stream.lane import Frames
from penstock.stream.reader import Batch
from penstock.stream.record import SavedForm
from penstock.stream.stream import Stream

DONE = b"[DONE]"

_encode = msgspec.json.encode
_FRAME = b"data: %b\n\n"
_NOT_ENDED: dict[str, Any] = {"finish_reason": None}


class ChunkForm(Form, frozen=True):
    """How the streams of one answer are shown as OpenAI's objects.

    `id`, `created` and `model` are in every object. `include_usage` adds a last chunk with the
    usage; `continuous_usage` puts the usage so far into every chunk. `echoes` has the text that
    each choice begins with. `num_per_prompt` is the number of choices of each prompt, whose tokens
    count once. `has_token_ids` adds the tokens' ids, under vLLM's names. `hides_reasoning` leaves
    out the model's reasoning, which still counts. `has_prompt_logprobs` adds the log probabilities
    of the prompt's tokens to a whole response.
    """

    chunk_object: ClassVar[str]
    whole_object: ClassVar[str]
    id: str
    created: int
    model: str
    include_usage: bool = False
    continuous_usage: bool = False
    has_logprobs: bool = False
    echoes: tuple[str, ...] = ("",)
    num_per_prompt: int = 1
    has_token_ids: bool = False
    hides_reasoning: bool = False
    has_prompt_logprobs: bool = False

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> "ChunkFrames":
        """Return the framer for these streams from their beginning."""
        return ChunkFrames(self, streams, with_ids=with_ids)

    def num_events(self, stream: Stream) -> int:
        """Return how many events have ids so far: the log's, and the frames after its end."""
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

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the whole response of these streams, which have all finished."""
        whole = {
            "id": self.id,
            "object": self.whole_object,
            "created": self.created,
            "model": self.model,
            "choices": [self._whole_choice(n, stream) for n, stream in enumerate(streams)],
            "usage": self.total_usage(streams),
        }
        if self.has_token_ids:
            self.place_in_prompt(whole, "prompt_token_ids", [each.prompt_ids for each in streams])
        if self.has_prompt_logprobs:
            found = [prompt_logprobs(each.prompt_logprobs_found or ()) for each in streams]
            self.place_in_prompt(whole, "prompt_logprobs", found)
        return whole

    def _whole_choice(self, number: int, stream: Stream) -> dict[str, Any]:
        assert isinstance(stream.ended, Finish)
        deltas = [event for event in stream.log.after(0) if isinstance(event, Delta)]
        logprobs = None
        if self.has_logprobs:
            logprobs = self.logprobs(deltas, len(self.echoes[number]))
        has_called = any(isinstance(delta, ToolCall) for delta in deltas)
        ending = self.ending(stream.ended, has_called=has_called)
        if self.has_token_ids:
            ending["token_ids"] = all_token_ids(deltas, stream.ended)
        return self.choice(number, self.whole_content(number, deltas), logprobs, ending)

    def chunk(self, choices: list[Any], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return a chunk. It has a `usage`, perhaps null, only if the client asked for usage."""
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": self.chunk_object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = usage
        return chunk

    def choice(
        self, number: int, content: dict[str, Any], logprobs: Any, ending: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a choice of a chunk or of a whole response."""
        return {"index": number, **content, "logprobs": logprobs, **ending}

    def ends_with_usage(self, end: TerminalEvent) -> bool:
        """Return True if a chunk with the usage follows this end of the last choice."""
        return self.include_usage and isinstance(end, Finish)

    def total_usage(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the usage of all choices, which have ended: each answer, and each prompt once."""
        usages = [stream.usage for stream in streams]
        prompts = usages[:: self.num_per_prompt]
        total = Usage(
            sum(usage.prompt_tokens for usage in prompts),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in prompts),
        )
        return self.usage(total, sum(num_reasoning_tokens(each.log.after(0)) for each in streams))

    def ending(self, end: Finish, *, has_called: bool) -> dict[str, Any]:
        """Return the fields of a choice that say how it ended; `has_called`: it calls tools."""
        return ending_fields(end, has_called=has_called)

    # The differences between chats and completions.

    def place_in_prompt(self, response: dict[str, Any], name: str, values: list[Any]) -> None:
        """Put a field of the prompt where vLLM has it in a response or a chunk.

        `values` has the field's value for each choice.
        """
        raise NotImplementedError

    def content(self, number: int, delta: Delta | None, *, is_first: bool) -> dict[str, Any]:
        """Return the fields with this delta, None for no text, in a chunk of choice `number`."""
        raise NotImplementedError

    def whole_content(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        """Return the fields with the whole answer in choice `number`."""
        raise NotImplementedError

    def logprobs(self, deltas: Sequence[Delta], offset: int) -> dict[str, Any]:
        """Return the log probabilities; the first token is `offset` characters into the text."""
        raise NotImplementedError

    def usage(self, usage: Usage, num_reasoning: int) -> dict[str, Any]:
        """Return the usage, of which `num_reasoning` tokens are reasoning."""
        raise NotImplementedError


class ChatForm(ChunkForm, frozen=True):
    """How the answer of `/v1/chat/completions` is shown."""

    dialect = "openai.chat"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def place_in_prompt(self, response: dict[str, Any], name: str, values: list[Any]) -> None:
        """Put a field of the prompt next to the choices, which share it."""
        response[name] = values[0]

    def content(self, number: int, delta: Delta | None, *, is_first: bool) -> dict[str, Any]:
        """Return the `delta` of a chunk; the first one names the role."""
        fields: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if delta is not None:
            fields |= self.delta_fields(delta)
        elif is_first:
            fields["content"] = None  # there may be only reasoning or calls
        return {"delta": fields}

    def delta_fields(self, delta: Delta) -> dict[str, Any]:
        """Return what a chunk adds to the message."""
        return delta_fields(delta)

    def whole_content(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        """Return the `message`."""
        if self.hides_reasoning:
            deltas = [delta for delta in deltas if not isinstance(delta, Reasoning)]
        return {"message": message_fields(deltas)}

    def logprobs(self, deltas: Sequence[Delta], offset: int) -> dict[str, Any]:
        """Return the log probabilities, one object for each token."""
        return chat_logprobs(deltas)

    def usage(self, usage: Usage, num_reasoning: int) -> dict[str, Any]:
        """Return the usage with the tokens of the reasoning."""
        details = {"reasoning_tokens": num_reasoning}
        return {**usage_fields(usage), "completion_tokens_details": details}


class FunctionsForm(ChatForm, frozen=True):
    """How a chat is shown whose request has `functions`, OpenAI's first form of tools."""

    dialect = "openai.functions"

    def ending(self, end: Finish, *, has_called: bool) -> dict[str, Any]:
        """Return the fields of a choice that say how it ended; `has_called`: it calls one."""
        fields = super().ending(end, has_called=has_called)
        is_call = fields["finish_reason"] == "tool_calls"
        return {"finish_reason": "function_call"} if is_call else fields

    def delta_fields(self, delta: Delta) -> dict[str, Any]:
        """Return what a chunk adds to the message."""
        return function_delta_fields(delta)

    def whole_content(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        """Return the `message`, with its call in `function_call`."""
        content = super().whole_content(number, deltas)
        if calls := content["message"].pop("tool_calls", None):
            content["message"]["function_call"] = calls[0]["function"]
        return content


class CompletionForm(ChunkForm, frozen=True):
    """How the answer of `/v1/completions` is shown.

    With `num_echoed_top`, an answer begins with its prompt and the log probabilities of the
    prompt's tokens, each with this many likeliest tokens.
    """

    num_echoed_top: int | None = None

    dialect = "openai.completions"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def save(self) -> SavedForm:
        """Return the form as a value for the stream's record, which shares the echoed prompts."""
        if not any(self.echoes):
            return super().save()
        saved = msgspec.structs.replace(self, echoes=()).save()
        saved.options["echoes"] = list(self.echoes)
        return saved

    def place_in_prompt(self, response: dict[str, Any], name: str, values: list[Any]) -> None:
        """Put a field of the prompt into each choice."""
        for choice, value in zip(response["choices"], values, strict=True):
            choice[name] = value

    def _whole_choice(self, number: int, stream: Stream) -> dict[str, Any]:
        choice = super()._whole_choice(number, stream)
        if self.num_echoed_top is None:
            return choice
        places = stream.prompt_logprobs_found or ()
        text = "".join(place[0].text for place in places)
        prompt = echoed_logprobs(places, self.num_echoed_top)
        answer = choice["logprobs"]
        answer["text_offset"] = [len(text) + offset for offset in answer["text_offset"]]
        both = {name: values + answer[name] for name, values in prompt.items()}
        return {**choice, "text": text + choice["text"], "logprobs": both}

    def content(self, number: int, delta: Delta | None, *, is_first: bool) -> dict[str, Any]:
        """Return the `text` of a chunk; the first one begins with the echo."""
        echo = self.echoes[number] if is_first else ""
        return {"text": echo if delta is None else echo + delta.text}

    def whole_content(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        """Return the `text`, which begins with the echo."""
        texts = [delta.text for delta in deltas if delta.__class__ is Delta]
        return {"text": self.echoes[number] + "".join(texts)}

    def logprobs(self, deltas: Sequence[Delta], offset: int) -> dict[str, Any]:
        """Return the log probabilities, with each token's offset in the choice's text."""
        return completion_logprobs(deltas, offset)

    def usage(self, usage: Usage, num_reasoning: int) -> dict[str, Any]:
        """Return the usage."""
        return usage_fields(usage)


class ChunkFrames:
    """Frames the streams of one answer for one reader.

    `cursor` is the index of the reader's first event. `with_ids` gives each frame an id; the id of
    an event of the log is its index. `num_sent` is how many frames of the terminal event the reader
    already has. A reader of several streams always starts at the beginning, without ids.
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
        self._id_line = id_line(streams[0].id) if with_ids else b""
        self._next_id = cursor
        self._num_sent = num_sent
        self._num_open = len(streams)
        self._ends = (b"", b"")
        """The bytes around a plain delta's text on the straight path."""
        self._is_over = False
        # OpenAI's SDK lists the choices of a chat in the order of their first chunks, and fails if
        # that is not the order of their indices.
        self._must_open = isinstance(form, ChatForm) and len(streams) > 1

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""
        parts: list[bytes] = []
        if self._must_open and batches and not isinstance(batches[0][1][0], Failure):
            self._must_open = False
            parts += [choice.opening() for choice in self._choices]
        for number, events in batches:
            choice = self._choices[number]
            for event in events:
                if self._is_over:  # a failure of one choice ends the response
                    return b"".join(parts)
                if isinstance(event, Delta):
                    frame = choice.delta(event)
                    if self._id_line:
                        if frame:
                            parts.append(self._id_line % self._next_id)
                        self._next_id += 1
                    parts += frame
                else:
                    parts += self._end(number, event)
        return b"".join(parts)

    def straight(self) -> Frames | None:
        """Return how the next plain deltas of the only choice are framed.

        Return None if more than the text varies in a frame.
        """
        ends = self._choices[0].ends_of_text()
        if ends is None or len(self._choices) > 1:
            return None
        self._ends = ends
        return self._frame_with_id if self._id_line else ends

    def _frame_with_id(self, text: str) -> bytes:
        event_id = self._next_id
        self._next_id = event_id + 1
        before, after = self._ends
        return b"%b%b%b%b" % (self._id_line % event_id, before, _encode(text), after)

    def _end(self, number: int, end: TerminalEvent) -> list[bytes]:
        """Return a choice's last frame, and after the last choice the end of the response."""
        self._num_open -= 1
        if isinstance(end, Failure):
            frames = [_encode({"error": failure_object(end)})]
        else:
            frames = [_encode(self._choices[number].last_chunk(end))]
        self._is_over = not self._num_open or isinstance(end, Failure)
        if self._is_over:
            if self._form.ends_with_usage(end):
                frames.append(_encode(self._form.chunk([], self._form.total_usage(self._streams))))
            frames.append(DONE)
        parts: list[bytes] = []
        for count, frame in enumerate(frames[self._num_sent :], self._num_sent):
            if self._id_line:
                parts.append(self._id_line % (self._next_id + count))
            parts.append(_FRAME % frame)
        return parts


class _ChoiceFrames:
    """The frames of one choice, for a reader that starts at `cursor`."""

    def __init__(self, form: ChunkForm, number: int, stream: Stream, cursor: int) -> None:
        self._form = form
        self._number = number
        self._stream = stream
        self._has_begun = cursor > 0
        sent = [event for event in stream.log.after(0, cursor) if isinstance(event, Delta)]
        self._has_called = any(isinstance(delta, ToolCall) for delta in sent)
        self._num_tokens = sum(delta.num_tokens for delta in sent)
        self._num_reasoning = num_reasoning_tokens(sent)
        self._token_offset = len(form.echoes[number]) + num_token_characters(sent)
        # The bytes around the text: the same in every frame but the first, if only the text varies.
        content = form.content(number, Delta(PLACE, 0), is_first=False)
        frame = _FRAME % _encode(form.chunk([form.choice(number, content, None, _NOT_ENDED)]))
        self._before, self._after = around_place(frame)
        self._only_text_varies = not (
            form.has_logprobs or form.continuous_usage or form.has_token_ids
        )
        self._hidden_ids: list[int] = []
        """The ids of hidden tokens, which the next frame reports."""

    def delta(self, delta: Delta) -> tuple[bytes, ...]:
        """Return a delta's frame, in parts."""
        is_text = delta.__class__ is Delta
        if is_text and self._has_begun and self._only_text_varies:
            return self._before, _encode(delta.text), self._after
        logprobs = None
        if self._form.has_logprobs and is_text:
            logprobs = self._form.logprobs([delta], self._token_offset)
            self._token_offset += num_token_characters([delta])
        self._has_called = self._has_called or isinstance(delta, ToolCall)
        self._num_tokens += delta.num_tokens
        self._num_reasoning += num_reasoning_tokens([delta])
        if self._form.hides_reasoning and isinstance(delta, Reasoning):
            self._hidden_ids += delta.token_ids
            return ()
        return (self._frame(delta, logprobs),)

    def ends_of_text(self) -> tuple[bytes, bytes] | None:
        """Return the bytes around the text of a plain delta, None if not only the text varies."""
        if self._has_begun and self._only_text_varies:
            return self._before, self._after
        return None

    def opening(self) -> bytes:
        """Return the frame that names the role before there is any text."""
        return self._frame(None)

    def last_chunk(self, end: Finish) -> dict[str, Any]:
        """Return the chunk with the finish reason; an empty answer has no other chunk."""
        ending = self._form.ending(end, has_called=self._has_called)
        if self._form.has_token_ids:
            ending["token_ids"] = self._take_hidden(end.token_ids)
        nothing = None if self._has_shown() else Delta("", 0)
        chunk = self._chunk(nothing, None, ending, end.usage)
        return chunk | {"ignored": end.late_notes} if end.late_notes else chunk

    def _has_shown(self) -> bool:
        """Return True if a frame before the last one had a delta."""
        hidden = Reasoning if self._form.hides_reasoning else ()
        events = self._stream.log.after(0)
        return any(isinstance(each, Delta) and not isinstance(each, hidden) for each in events)

    def _frame(self, delta: Delta | None, logprobs: dict[str, Any] | None = None) -> bytes:
        usage = self._stream.usage
        so_far = Usage(usage.prompt_tokens, self._num_tokens, usage.cached_tokens)
        ending: dict[str, Any] = _NOT_ENDED
        if self._form.has_token_ids:
            ids = None if delta is None else self._take_hidden(token_ids_of([delta]))
            ending = {**_NOT_ENDED, "token_ids": ids}
        return _FRAME % _encode(self._chunk(delta, logprobs, ending, so_far))

    def _take_hidden(self, token_ids: Sequence[int] | None) -> list[int] | None:
        """Return the ids with those of hidden tokens before them."""
        hidden, self._hidden_ids = self._hidden_ids, []
        return None if token_ids is None else [*hidden, *token_ids]

    def _chunk(
        self,
        delta: Delta | None,
        logprobs: dict[str, Any] | None,
        ending: dict[str, Any],
        usage: Usage,
    ) -> dict[str, Any]:
        form = self._form
        is_first, self._has_begun = not self._has_begun, True
        content = form.content(self._number, delta, is_first=is_first)
        choice = form.choice(self._number, content, logprobs, ending)
        so_far = form.usage(usage, self._num_reasoning) if form.continuous_usage else None
        chunk = form.chunk([choice], so_far)
        if is_first and form.has_token_ids:
            form.place_in_prompt(chunk, "prompt_token_ids", [self._stream.prompt_ids])
        return chunk
