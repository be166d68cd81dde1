"""What llama.cpp answers, as it comes: bytes in, what they say told to a sink.

In: the bodies of `/completion` and `/v1/chat/completions`, cut anywhere. Out: calls of a `Sink`.
The one names each token and knows nothing of tools; the other finds calls and reasoning in the
text, in whichever form the model's template has them, and counts tokens without naming them. Not
known here: sockets.
"""

import asyncio
from abc import ABC, abstractmethod

import msgspec

from penstock.engine.grammar import is_json
from penstock.engine.protocol import EngineFinish, Sink
from penstock.events import TokenLogprob

# llama.cpp's word for "impossible" is the lowest number that there is; this one is OpenAI's.
LOWEST_LOGPROB = -9999.0


class Refusal(msgspec.Struct):
    """Why llama.cpp does not do what was asked."""

    message: str = "no reason given"


class Probability(msgspec.Struct):
    """How likely a token was. Of the tokens of one character llama.cpp tells only the last, with
    the character's bytes."""

    utf8: list[int] = msgspec.field(name="bytes")
    logprob: float
    top_logprobs: tuple["Probability", ...] = ()

    def as_word(self, num_top: int) -> TokenLogprob:
        """The same in the words of the system."""
        top = self.top_logprobs[:num_top]
        return TokenLogprob(
            bytes(self.utf8),
            max(self.logprob, LOWEST_LOGPROB),
            tuple((bytes(each.utf8), max(each.logprob, LOWEST_LOGPROB)) for each in top),
        )


class Chunk(msgspec.Struct):
    """One event of `/completion`: the text of a step, how far it is with the prompt, the end
    (`stop`), or an error."""

    content: str = ""
    tokens: tuple[int, ...] = ()
    tokens_predicted: int = 0
    completion_probabilities: tuple[Probability, ...] = ()
    prompt_progress: dict[str, int] | None = None
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
    """One event of `/v1/chat/completions`. `timings` counts the tokens so far, `usage` all."""

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
    prompt_progress: dict[str, int] | None = None
    error: Refusal | None = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_chat_chunk = msgspec.json.Decoder(ChatChunk).decode


class RefusedByEngineError(Exception):
    """llama.cpp said no, and why."""


class _EventReader(ABC):
    """A body of Server-Sent Events: `feed` it, and `end` it."""

    def __init__(self) -> None:
        self._buffer = b""
        self._ended = False
        self._refusal: Refusal | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes: events end with an empty line."""
        *events, self._buffer = (self._buffer + data).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._event(event[6:])

    @abstractmethod
    def _event(self, data: bytes) -> None:
        """One event's data."""

    def end(self, status: int) -> None:
        """The body is over. Raises where that is not a right end."""
        if status != 200 or not self._ended:
            raise RefusedByEngineError((self._refusal or refusal_in(self._buffer)).message)


class CompletionReader(_EventReader):
    """The body of `/completion` as it comes; what it says, told to the sink.

    `num_top`: likeliest tokens that are told with each. `must_be_json`: an answer that ends by
    itself is checked to be JSON.
    """

    def __init__(self, sink: Sink, num_top: int, must_be_json: bool) -> None:
        super().__init__()
        self._sink = sink
        self._num_top = num_top
        self._text: list[str] | None = [] if must_be_json else None
        self._num_tokens = 0

    def _event(self, data: bytes) -> None:
        chunk = _decode_chunk(data)
        if chunk.error is not None:
            self._refusal = chunk.error
            return
        if chunk.prompt_progress is not None:
            self._sink.working()
        num_tokens = chunk.tokens_predicted - self._num_tokens
        if chunk.content or num_tokens > 0:
            # A character may take several tokens, of which llama.cpp names only the last: then
            # the ids are not known, and none is better than some.
            known = chunk.tokens if len(chunk.tokens) == num_tokens else ()
            self._num_tokens = chunk.tokens_predicted
            if self._text is not None:
                self._text.append(chunk.content)
            if chunk.completion_probabilities and chunk.content:
                logprobs = [each.as_word(self._num_top) for each in chunk.completion_probabilities]
                self._sink.delta(chunk.content, num_tokens, known, tuple(logprobs))
            else:
                self._sink.delta(chunk.content, num_tokens, known)
        if chunk.stop:
            self._end(chunk)

    def _end(self, chunk: Chunk) -> None:
        self._ended = True
        if chunk.stop_type == "limit":
            self._sink.finish("length", chunk.tokens_predicted)
        elif self._text is not None and not is_json("".join(self._text)):
            # llama.cpp drops a grammar that it cannot follow any more, and only its log says so.
            self._sink.fail("schema_lost", "llama.cpp left the schema. Simplify it.")
        else:
            self._sink.finish("stop", chunk.tokens_predicted)


class ChatReader(_EventReader):
    """The body of `/v1/chat/completions` as it comes; what it says, told to the sink.

    A second call ends the answer, where there may be no `parallel_calls`: llama.cpp takes that for
    a wish. `is_over` resolves then; the rest of the body is not wanted.
    """

    def __init__(self, sink: Sink, *, parallel_calls: bool) -> None:
        super().__init__()
        self._sink = sink
        self._parallel_calls = parallel_calls
        self._num_tokens = 0
        self._num_untold = 0
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
            self._sink.working()
        if chunk.timings is not None:
            self._num_untold += chunk.timings.predicted_n - self._num_tokens
            self._num_tokens = chunk.timings.predicted_n
        for choice in chunk.choices:
            self._delta(choice.delta)
            if choice.finish_reason == "length":
                self._reason = "length"
        if chunk.usage is not None:
            self._end(self._reason, chunk.usage.completion_tokens)

    def _delta(self, delta: _Delta) -> None:
        if delta.reasoning_content:
            self._sink.reasoning(delta.reasoning_content, self._take_untold(), ())
        if delta.content:
            self._sink.delta(delta.content, self._take_untold(), ())
        for call in delta.tool_calls:
            if call.index and not self._parallel_calls:
                self._end("stop", self._num_tokens)
                self.is_over.set_result(None)
                return
            name, arguments = call.function.name, call.function.arguments
            self._sink.tool_call(call.index, call.id, name, arguments, self._take_untold())

    def _take_untold(self) -> int:
        """The tokens since the last event that was told."""
        untold, self._num_untold = self._num_untold, 0
        return untold

    def _end(self, reason: EngineFinish, completion_tokens: int) -> None:
        self._ended = True
        self._sink.finish(reason, completion_tokens)


def refusal_in(body: bytes) -> Refusal:
    """Why, where the body says it."""
    try:
        return _decode_chunk(body).error or Refusal()
    except msgspec.DecodeError:
        return Refusal()
