"""A sink that records every call and that a test can wait for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.engine.protocol import EngineFinish
from penstock.events import PromptLogprobs, TokenLogprob
from penstock.text import Text


@dataclass
class RecordingSink:
    """A sink that records its calls; `calls` has the methods' names in order."""

    on_delta: Callable[[], None] = lambda: None
    on_end: Callable[[], None] = lambda: None
    calls: list[str] = field(default_factory=list)
    pieces: list[str | bytes] = field(default_factory=list)
    num_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    completion_tokens: int = -1
    cached_tokens: int = 0
    late_prompt_tokens: int = 0
    reason: EngineFinish | None = None
    failure: tuple[str, str] | None = None
    prompt: PromptLogprobs | None = None
    thoughts: list[str] = field(default_factory=list)
    tool_parts: list[tuple[int, str, str, str]] = field(default_factory=list)
    silences: list[float] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        self.prompt_ids = prompt_ids
        self.notes = notes
        self._note("accepted")

    def started(self) -> None:
        self._note("started")

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        self.prompt = logprobs

    def working(self, num_read: int = 0) -> None:
        self._note("working")

    def interrupted(self, *, waits: bool) -> None:
        self._note("waiting" if waits else "continuing")

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        self.cached_tokens = num_tokens
        self.late_prompt_tokens = prompt_tokens
        self._note("cached")

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        self.logprobs += logprobs
        self.pieces.append(piece)
        self.num_tokens += num_tokens
        self.token_ids += token_ids
        self._note("delta")
        self.on_delta()

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        self.thoughts.append(text)
        self.num_tokens += num_tokens
        self.token_ids += token_ids
        self._note("reasoning")

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        self.tool_parts.append((number, call_id, name, arguments))
        self.num_tokens += num_tokens
        self._note("tool_call")

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        self.reason, self.completion_tokens = reason, completion_tokens
        self.on_end()
        self._note("finish")

    def fail(self, code: str, message: str) -> None:
        self.failure = (code, message)
        self.on_end()
        self._note("fail")

    def lost(self) -> None:
        self._note("lost")

    def silent(self, seconds: float, limit: float) -> None:
        self.silences.append(seconds)
        self._note("silent")

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids) or self.late_prompt_tokens

    @property
    def ended(self) -> bool:
        return self.reason is not None or self.failure is not None or "lost" in self.calls

    def text(self) -> str:
        text = Text()
        return "".join(text.push(piece) for piece in self.pieces) + text.flush()

    async def until(self, call: str, limit: float = 30.0) -> None:
        """Wait until the method named `call` is called, at most `limit` seconds."""
        async with asyncio.timeout(limit):
            while call not in self.calls:
                await self._next()

    async def end(self, limit: float = 60.0) -> "RecordingSink":
        """Wait for `finish`, `fail` or `lost`, at most `limit` seconds."""
        async with asyncio.timeout(limit):
            while not self.ended:
                await self._next()
        return self

    async def _next(self) -> None:
        self.changed.clear()
        await self.changed.wait()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.changed.set()
