"""Reads the streamed answers of upstreams: OpenAI's two forms, and llama.cpp's `/completion`.

In: a body of Server-Sent Events, cut anywhere. Out: calls of an `Account`. Everything in the body
may be wrong: each reader raises GarbageError then, and UpstreamError where the upstream reports a
failure of its own.
"""

from abc import ABC, abstractmethod
from typing import Any

import msgspec

from penstock.engine.llamacpp.answers import Chunk
from penstock.engine.protocol import EngineFinish
from penstock.engine.remote.account import Account
from penstock.engine.remote.failures import GarbageError, UpstreamError

MAX_LINE_BYTES = 1024 * 1024
MAX_PROMPT_TOKENS = 2**31 - 1
REASONS: dict[str, EngineFinish] = {
    "stop": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "content_filter": "stop",
    "length": "length",
}


class Usage(msgspec.Struct):
    """OpenAI's count of tokens."""

    class Details(msgspec.Struct):
        cached_tokens: int | None = 0

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class CompletionChunk(msgspec.Struct):
    """An event of `/v1/completions`; `token_ids` is vLLM's and Penstock's."""

    class Choice(msgspec.Struct):
        text: str = ""
        index: int = 0
        token_ids: tuple[int, ...] | None = None
        finish_reason: str | None = None

    choices: tuple[Choice, ...] = ()
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

        delta: Delta = msgspec.field(default_factory=Delta)
        index: int = 0
        finish_reason: str | None = None

    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    error: Any = None


_decode_completion = msgspec.json.Decoder(CompletionChunk).decode
_decode_chat = msgspec.json.Decoder(ChatChunk).decode
_decode_llama = msgspec.json.Decoder(Chunk).decode


class Reader(ABC):
    """A reader of one answer. `is_over` is True once nothing more is needed of the body."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._rest = b""
        self.is_over = False

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body. Raises UpstreamError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise GarbageError("it sent a line that is too long")
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
        if usage.completion_tokens < account.usage or usage.prompt_tokens < 0:
            raise GarbageError("it counts tokens backwards")
        if usage.prompt_tokens > MAX_PROMPT_TOKENS:
            raise GarbageError("it counts more tokens than a prompt can have")
        num_new = usage.completion_tokens - account.num_in_part
        account.usage = usage.completion_tokens
        details = usage.prompt_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        account.prompt(usage.prompt_tokens, cached if cached <= usage.prompt_tokens else 0)
        return max(0, num_new)

    def _reason(self, reason: str | None) -> None:
        if reason is None:
            return
        if reason not in REASONS:
            raise UpstreamError("it gave the answer up")
        self._account.end(REASONS[reason])


class CompletionReader(Reader):
    """Reads `/v1/completions`: with the ids of tokens, where the upstream sends them."""

    def _event(self, event: bytes) -> None:
        chunk = _decode_completion(event)
        if chunk.error is not None:
            raise UpstreamError("it reports an error")
        num_tokens = None if chunk.usage is None else self._count(chunk.usage)
        for choice in chunk.choices:
            if choice.index:
                raise GarbageError("it sent an answer that nobody asked for")
            ids = choice.token_ids or ()
            if ids:
                self._account.delta(choice.text, len(ids), ids)
            elif choice.text or num_tokens:
                # Without a count, a piece is a token.
                counted = num_tokens if num_tokens is not None else 1
                self._account.delta(choice.text, counted, ())
            self._reason(choice.finish_reason)


class ChatReader(Reader):
    """Reads `/v1/chat/completions`: text, reasoning and tool calls. A piece counts as a token."""

    def _event(self, event: bytes) -> None:
        chunk = _decode_chat(event)
        if chunk.error is not None:
            raise UpstreamError("it reports an error")
        for choice in chunk.choices:
            if choice.index:
                raise GarbageError("it sent an answer that nobody asked for")
            delta = choice.delta
            if thought := delta.reasoning_content or delta.reasoning:
                self._account.reasoning(thought, 1)
            if delta.content:
                self._account.delta(delta.content, 1, ())
            for call in delta.tool_calls or ():
                name, arguments = call.function.name or "", call.function.arguments or ""
                self._account.tool_call(call.index, call.id or "", name, arguments, 1)
            self._reason(choice.finish_reason)
        if chunk.usage is not None:
            self._count(chunk.usage)


class LlamaReader(Reader):
    """Reads llama.cpp's `/completion`, which reports the ids of tokens."""

    _num_tokens = 0
    _has_begun = False

    def _event(self, event: bytes) -> None:
        chunk = _decode_llama(event)
        account = self._account
        if chunk.error is not None:
            raise UpstreamError("it reports an error")
        if chunk.prompt_progress is not None:
            if chunk.prompt_progress.cache > 0 and not self._has_begun:
                account.sink.cached(chunk.prompt_progress.cache)
            self._has_begun = True
            account.sink.working()
        num_tokens = chunk.tokens_predicted - self._num_tokens
        if num_tokens < 0:
            raise GarbageError("it counts tokens backwards")
        self._num_tokens = chunk.tokens_predicted
        if chunk.content or num_tokens:
            # Several tokens that form one character come with the last id only.
            ids = chunk.tokens if len(chunk.tokens) == num_tokens else ()
            account.delta(chunk.content, num_tokens, ids)
        if chunk.stop:
            account.end("length" if chunk.stop_type == "limit" else "stop")
            self.is_over = True
