"""Reads the streamed answers of upstreams: OpenAI's two forms, and llama.cpp's `/completion`.

In: a body of Server-Sent Events, cut anywhere. Out: calls of an `Account`. Everything in the body
may be wrong: each reader raises GarbageError then, and UpstreamError where the upstream reports a
failure of its own.
"""

from abc import ABC, abstractmethod
from typing import Any

import msgspec

from penstock.engine.llamacpp.answers import Progress
from penstock.engine.protocol import EngineFinish
from penstock.engine.remote.account import Account
from penstock.engine.remote.failures import GarbageError, RefusedError, UpstreamError
from penstock.engine.remote.logprobs import Chosen, Logprobs, words_of
from penstock.events import TokenLogprob

MAX_LINE_BYTES = 1024 * 1024
MAX_PROMPT_TOKENS = 2**31 - 1
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REASONS: dict[str, EngineFinish] = {
    "stop": "stop",
    "eos_token": "stop",  # Hugging Face's server
    "stop_sequence": "stop",  # Hugging Face's server
    "tool_calls": "stop",
    "function_call": "stop",
    "content_filter": "stop",
    "length": "length",
}


# Servers may write null instead of leaving a field out, so most fields below may be None.


class Usage(msgspec.Struct):
    """OpenAI's count of tokens."""

    class Details(msgspec.Struct):
        cached_tokens: int | None = 0

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: Details | None = None

    def __bool__(self) -> bool:
        """Return False if it counts nothing. Ollama sends zeros with every piece of an answer."""
        return bool(self.prompt_tokens or self.completion_tokens)


class CompletionChunk(msgspec.Struct):
    """An event of `/v1/completions`; `token_ids` is vLLM's and Penstock's."""

    class Choice(msgspec.Struct):
        text: str | None = ""
        index: int | None = 0
        token_ids: tuple[int, ...] | None = None
        logprobs: Logprobs | None = None
        finish_reason: str | None = None

    choices: tuple[Choice, ...] | None = ()
    usage: Usage | None = None
    error: Any = None


class ChatChunk(msgspec.Struct):
    """An event of `/v1/chat/completions`."""

    class Choice(msgspec.Struct):
        class Delta(msgspec.Struct):
            class Call(msgspec.Struct):
                class Function(msgspec.Struct):
                    name: str | None = None
                    arguments: str | None = None

                index: int = 0
                id: str | None = None
                function: Function = msgspec.field(default_factory=Function)

            content: str | None = None
            reasoning_content: str | None = None
            reasoning: str | None = None
            tool_calls: tuple[Call, ...] | None = None

        delta: Delta | None = None
        index: int | None = 0
        logprobs: Logprobs | None = None
        finish_reason: str | None = None

    choices: tuple[Choice, ...] | None = ()
    usage: Usage | None = None
    error: Any = None


class LlamaChunk(msgspec.Struct):
    """An event of llama.cpp's `/completion`.

    When several tokens form one character, it reports only the last token.
    """

    content: str = ""
    tokens: tuple[int, ...] = ()
    tokens_predicted: int = 0
    completion_probabilities: tuple[Chosen, ...] = ()
    prompt_progress: Progress | None = None
    stop: bool = False
    stop_type: str = ""
    error: Any = None


_decode_completion = msgspec.json.Decoder(CompletionChunk).decode
_decode_chat = msgspec.json.Decoder(ChatChunk).decode
_decode_llama = msgspec.json.Decoder(LlamaChunk).decode


def _failure_in(error: Any, account: Account) -> UpstreamError | RefusedError:
    """Return the failure that an error event reports.

    Some servers answer 200 and then refuse the request in such an event, as SGLang does with a full
    queue.
    """
    code = error.get("code") if isinstance(error, dict) else None
    if code in (429, 503):
        return UpstreamError("it has no room", began=False, is_busy=True)
    if code in (400, 413, 422) and not account.has_text:
        return RefusedError(code, "")
    return UpstreamError("it reports an error")


class Reader(ABC):
    """A reader of one answer. `is_over` is True once nothing more is needed of the body."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._rest = b""
        self._has_lines = False
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body. Raises UpstreamError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise GarbageError("it sent a line that is too long")
        if lines and not self._has_lines:
            self._has_lines = True
            lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
        for line in lines:
            if line.startswith(b"data:") and not self.is_over:
                event = line[5:].strip()
                if event == b"[DONE]":
                    self.is_over = True
                elif event:
                    self._read(event)

    def end(self) -> None:
        """End the body. Raises UpstreamError if the answer is not complete."""
        if self._account.ending is None:
            raise UpstreamError("it ended its response before the answer was complete")

    def _read(self, event: bytes) -> None:
        try:
            self._event(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise GarbageError("it sent an event that cannot be read") from None

    @abstractmethod
    def _event(self, event: bytes) -> None:
        """Read one event. Raises UpstreamError and msgspec.DecodeError."""

    def _count(self, usage: Usage) -> int:
        """Return how many tokens were generated since the last count."""
        account = self._account
        num_prompt, num_answer = usage.prompt_tokens or 0, usage.completion_tokens or 0
        if num_answer < account.usage or num_prompt < 0:
            raise GarbageError("it counts tokens backwards")
        if num_prompt > MAX_PROMPT_TOKENS:
            raise GarbageError("it counts more tokens than a prompt can have")
        num_new = num_answer - account.num_in_part
        account.usage = num_answer
        details = usage.prompt_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        account.prompt(num_prompt, cached if cached <= num_prompt else 0)
        return max(0, num_new)

    def _words(
        self, found: Logprobs | None, text: str, *, is_last: bool
    ) -> tuple[TokenLogprob, ...]:
        """Return the log probabilities of an event with this text, if they were asked for.

        Without that of the token that ends the answer: it has no text. Raises GarbageError.
        """
        num_top = self._account.num_top
        if num_top is None or found is None:
            return ()
        words = found.words(num_top)
        if is_last and words and not text.encode("utf-8", "replace").endswith(words[-1].token):
            return words[:-1]
        return words

    def _reason(self, reason: str | None) -> None:
        if not reason:
            return
        if reason not in REASONS:
            raise UpstreamError("it gave the answer up")
        self._account.end(REASONS[reason])


class CompletionReader(Reader):
    """Reads `/v1/completions`: with the ids of tokens, where the upstream sends them."""

    def _event(self, event: bytes) -> None:
        chunk = _decode_completion(event)
        if chunk.error is not None:
            raise _failure_in(chunk.error, self._account)
        num_tokens = self._count(chunk.usage) if chunk.usage else None
        for choice in chunk.choices or ():
            if choice.index:
                raise GarbageError("it sent an answer that nobody asked for")
            text, ids = choice.text or "", choice.token_ids or ()
            words = self._words(choice.logprobs, text, is_last=bool(choice.finish_reason))
            if ids:
                self._account.delta(text, len(ids), ids, words)
            elif text or num_tokens or words:
                # Without a count, each log probability is a token's, or a piece is a token.
                counted = len(words) or 1 if num_tokens is None else max(num_tokens, len(words))
                self._account.delta(text, counted, (), words)
            self._reason(choice.finish_reason)


class ChatReader(Reader):
    """Reads `/v1/chat/completions`: text, reasoning and tool calls.

    A piece counts as a token, unless it has several log probabilities.
    """

    def _event(self, event: bytes) -> None:
        chunk = _decode_chat(event)
        if chunk.error is not None:
            raise _failure_in(chunk.error, self._account)
        for choice in chunk.choices or ():
            if choice.index:
                raise GarbageError("it sent an answer that nobody asked for")
            if choice.delta is not None:
                self._delta(choice, choice.delta)
            self._reason(choice.finish_reason)
        if chunk.usage:
            self._count(chunk.usage)

    def _delta(self, choice: ChatChunk.Choice, delta: ChatChunk.Choice.Delta) -> None:
        text = delta.content or ""
        thought = delta.reasoning_content or delta.reasoning or ""
        is_last = bool(choice.finish_reason)
        words = self._words(choice.logprobs, text or thought, is_last=is_last)
        if thought:
            self._account.reasoning(thought, 1 if text else len(words) or 1, () if text else words)
        if text or (words and not thought):
            self._account.delta(text, len(words) or 1, (), words)
        for call in delta.tool_calls or ():
            self._call(call)

    def _call(self, call: ChatChunk.Choice.Delta.Call) -> None:
        account = self._account
        if account.num_calls and call.index == account.num_calls and not account.parallel_calls:
            # Not every server obeys: a second call ends the answer.
            account.end("stop")
            self.is_over = True
        if not self.is_over:
            name, arguments = call.function.name or "", call.function.arguments or ""
            account.tool_call(call.index, call.id or "", name, arguments, 1)


class LlamaReader(Reader):
    """Reads llama.cpp's `/completion`, which reports the ids of tokens."""

    _num_tokens = 0
    _has_begun = False

    def _event(self, event: bytes) -> None:
        chunk = _decode_llama(event)
        account = self._account
        if chunk.error is not None:
            raise _failure_in(chunk.error, account)
        if chunk.prompt_progress is not None:
            if chunk.prompt_progress.cache > 0 and not self._has_begun:
                account.sink.cached(min(chunk.prompt_progress.cache, MAX_PROMPT_TOKENS))
            self._has_begun = True
            account.sink.working()
        num_tokens = chunk.tokens_predicted - self._num_tokens
        if num_tokens < 0:
            raise GarbageError("it counts tokens backwards")
        self._num_tokens = chunk.tokens_predicted
        if chunk.content or num_tokens:
            # Several tokens that form one character come with the last id only.
            ids = chunk.tokens if len(chunk.tokens) == num_tokens else ()
            words: tuple[TokenLogprob, ...] = ()
            if account.num_top is not None and chunk.content:
                words = words_of(chunk.completion_probabilities, account.num_top)
            account.delta(chunk.content, num_tokens, ids, words)
        if chunk.stop:
            account.end("length" if chunk.stop_type == "limit" else "stop")
            self.is_over = True
