"""Reads llama.cpp's streamed responses and passes them to a sink.

In: the bodies of `/completion` and `/v1/chat/completions`, cut anywhere. Out: calls of a `Sink`.
`/completion` returns token ids and knows nothing of tools. `/v1/chat/completions` finds tool calls
and reasoning in the text, in the form of the model's template, and counts tokens without their ids.
Not known here: sockets.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import msgspec

from penstock.engine.protocol import EngineFinish, Sink
from penstock.events import TokenLogprob

# OpenAI's log probability of an impossible token; llama.cpp uses the lowest number there is.
LOWEST_LOGPROB = -9999.0


class Refusal(msgspec.Struct):
    """llama.cpp's error object."""

    message: str = "no reason given"


class Probability(msgspec.Struct):
    """The log probability of a token.

    When several tokens form one character, llama.cpp reports only the last token, with the
    character's bytes.
    """

    id: int
    utf8: list[int] = msgspec.field(name="bytes")
    logprob: float
    top_logprobs: tuple["Probability", ...] = ()

    def as_word(self, num_top: int, names: Mapping[int, str]) -> TokenLogprob:
        """Convert to a `TokenLogprob` with the `num_top` likeliest tokens.

        `names` has the texts of tokens that llama.cpp reports without text.
        """

        def token(each: "Probability") -> tuple[bytes, float]:
            utf8 = bytes(each.utf8) or names.get(each.id, f"token_id:{each.id}").encode()
            return utf8, max(each.logprob, LOWEST_LOGPROB)

        return TokenLogprob(*token(self), tuple(map(token, self.top_logprobs[:num_top])))


class Progress(msgspec.Struct):
    """How far llama.cpp has read the prompt, in tokens.

    `processed` counts all that were read, `cache` those that it had already.
    """

    cache: int = 0
    processed: int = 0


class Chunk(msgspec.Struct):
    """An event of `/completion`: a step's text, prefill progress, the end (`stop`) or an error."""

    content: str = ""
    tokens: tuple[int, ...] = ()
    tokens_predicted: int = 0
    completion_probabilities: tuple[Probability, ...] = ()
    prompt_progress: Progress | None = None
    stop: bool = False
    stop_type: str = ""
    error: Refusal | None = None


class _Delta(msgspec.Struct):
    class Call(msgspec.Struct):
        class Function(msgspec.Struct):
            name: str = ""
            arguments: str = ""

        function: Function
        index: int = 0
        id: str = ""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[Call, ...] = ()


class ChatChunk(msgspec.Struct):
    """An event of `/v1/chat/completions`.

    `timings` counts the tokens so far, `usage` all tokens of the answer.
    """

    class Choice(msgspec.Struct):
        delta: _Delta
        finish_reason: str | None = None

    class Timings(msgspec.Struct):
        predicted_n: int

    class Usage(msgspec.Struct):
        completion_tokens: int

    choices: tuple[Choice, ...] = ()
    timings: Timings | None = None
    usage: Usage | None = None
    prompt_progress: Progress | None = None
    error: Refusal | None = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_chat_chunk = msgspec.json.Decoder(ChatChunk).decode


class RefusedByEngineError(Exception):
    """llama.cpp refused or failed the request; the message is its reason."""


class _EventReader(ABC):
    """A reader of a body of Server-Sent Events: call `feed` with bytes, then `end`."""

    def __init__(self) -> None:
        self._buffer = b""
        self._ended = False
        self._has_begun = False
        self._refusal: Refusal | None = None

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body."""
        *events, self._buffer = (self._buffer + data).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._event(event[6:])

    def _prefill(self, progress: Progress, sink: Sink) -> None:
        """Pass on that llama.cpp reads the prompt, and first how much of it was in its cache."""
        if progress.cache and not self._has_begun:
            sink.cached(progress.cache)
        self._has_begun = True
        sink.working(progress.processed)

    @abstractmethod
    def _event(self, data: bytes) -> None:
        """Handle the data of one event."""

    def end(self, status: int) -> None:
        """Finish the body. Raises RefusedByEngineError if it ended early or with an error."""
        if status != 200 or not self._ended:
            raise RefusedByEngineError((self._refusal or refusal_in(self._buffer)).message)


class CompletionReader(_EventReader):
    """A reader of `/completion`'s body that passes each event to `sink`.

    `num_top` is the number of likeliest tokens to report for each token. An answer that ends by
    itself fails unless `recognise` returns True for its text. `names` has the texts of tokens that
    llama.cpp reports without text.
    """

    def __init__(
        self,
        sink: Sink,
        num_top: int,
        recognise: Callable[[str], bool] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__()
        self._names = names or {}
        self._sink = sink
        self._num_top = num_top
        self._recognise = recognise
        self._text: list[str] = []
        self._num_tokens = 0

    def _event(self, data: bytes) -> None:
        chunk = _decode_chunk(data)
        if chunk.error is not None:
            self._refusal = chunk.error
            return
        if chunk.prompt_progress is not None:
            self._prefill(chunk.prompt_progress, self._sink)
        num_tokens = chunk.tokens_predicted - self._num_tokens
        if chunk.content or num_tokens > 0:
            # When several tokens form one character, llama.cpp reports the right count but only
            # the last id. An incomplete list of ids is useless, so report none.
            known = chunk.tokens if len(chunk.tokens) == num_tokens else ()
            self._num_tokens = chunk.tokens_predicted
            if self._recognise is not None:
                self._text.append(chunk.content)
            if chunk.completion_probabilities and chunk.content:
                logprobs = tuple(
                    each.as_word(self._num_top, self._names)
                    for each in chunk.completion_probabilities
                )
                self._sink.delta(chunk.content, num_tokens, known, logprobs)
            else:
                self._sink.delta(chunk.content, num_tokens, known)
        if chunk.stop:
            self._end(chunk)

    def _end(self, chunk: Chunk) -> None:
        self._ended = True
        if chunk.stop_type == "limit":
            self._sink.finish("length", chunk.tokens_predicted)
        elif self._recognise is not None and not self._recognise("".join(self._text)):
            # llama.cpp drops a grammar that it can no longer follow, and only logs that.
            self._sink.fail(
                "schema_lost",
                "llama.cpp stopped enforcing the schema or grammar. Simplify it.",
            )
        else:
            self._sink.finish("stop", chunk.tokens_predicted)


class ChatReader(_EventReader):
    """A reader of `/v1/chat/completions`'s body that passes each event to `sink`.

    Without `parallel_calls` a second tool call ends the answer, because llama.cpp does not always
    obey. Then `is_over` resolves and the rest of the body can be dropped.
    """

    def __init__(self, sink: Sink, *, parallel_calls: bool) -> None:
        super().__init__()
        self._sink = sink
        self._parallel_calls = parallel_calls
        self._num_tokens = 0
        self._num_pending = 0
        self._reason: EngineFinish = "stop"
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _event(self, data: bytes) -> None:
        if self._ended or data == b"[DONE]":
            return
        chunk = _decode_chat_chunk(data)
        if chunk.error is not None:
            self._refusal = chunk.error
            return
        if chunk.prompt_progress is not None:
            self._prefill(chunk.prompt_progress, self._sink)
        if chunk.timings is not None:
            self._num_pending += chunk.timings.predicted_n - self._num_tokens
            self._num_tokens = chunk.timings.predicted_n
        for choice in chunk.choices:
            self._delta(choice.delta)
            if choice.finish_reason == "length":
                self._reason = "length"
        if chunk.usage is not None:
            self._end(self._reason, chunk.usage.completion_tokens)

    def _delta(self, delta: _Delta) -> None:
        if delta.reasoning_content:
            self._sink.reasoning(delta.reasoning_content, self._take_pending(), ())
        if delta.content:
            self._sink.delta(delta.content, self._take_pending(), ())
        for call in delta.tool_calls:
            if call.index and not self._parallel_calls:
                self._end("stop", self._num_tokens)
                self.is_over.set_result(None)
                return
            name, arguments = call.function.name, call.function.arguments
            self._sink.tool_call(call.index, call.id, name, arguments, self._take_pending())

    def _take_pending(self) -> int:
        """Return the number of tokens that no event has reported yet, and reset it."""
        pending, self._num_pending = self._num_pending, 0
        return pending

    def _end(self, reason: EngineFinish, completion_tokens: int) -> None:
        self._ended = True
        self._sink.finish(reason, completion_tokens)


def refusal_in(body: bytes) -> Refusal:
    """Return the error in a body, or a refusal without a reason."""
    try:
        return _decode_chunk(body).error or Refusal()
    except msgspec.DecodeError:
        return Refusal()
