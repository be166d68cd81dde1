"""A part of a generation that runs alone in the engine, to see whether it kills the engine.

In: what the engine pushes. Out: the same for the stream, and `over` when the engine has survived so
many tokens. Not known here: which streams are tried, and what follows.
"""

import asyncio
from typing import Any

import msgspec

from penstock.engine.protocol import EngineFinish
from penstock.events import PromptLogprobs, TokenLogprob
from penstock.request import Request
from penstock.stream.stream import Stream


class Trial:
    """The sink of `stream` during its trial, which lasts for `num_tokens` tokens.

    Then the engine itself ends the request, and the stream can be continued. A stream that must not
    or cannot pause (`pauses`) goes on, and its trial is over with its first token.
    """

    lane = None
    """The straight path sends nothing of a trial (see `straight`)."""

    def __init__(self, stream: Stream, num_tokens: int, *, pauses: bool) -> None:
        self.stream = stream
        self.is_stopped = False
        self.request = stream.continuation()
        can_pause = pauses and stream.can_pause
        self._is_cut = can_pause and num_tokens < self.request.max_tokens
        if self._is_cut:
            self.request = _shortened(self.request, num_tokens)
        self._over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def until_over(self) -> None:
        """Wait until the trial is over, or its stream has ended."""
        end: asyncio.Future[Any] = asyncio.ensure_future(self.stream.end())
        try:
            await asyncio.wait({self._over, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            end.cancel()

    @property
    def goes_on(self) -> bool:
        """Return True if the engine still works on the stream after the trial."""
        return not (self.stream.is_over or self.is_stopped or self._is_cut)

    @property
    def was_survived(self) -> bool:
        """Return True if the stream waits to go on here after the trial."""
        return not (self.stream.is_over or self.is_stopped)

    def stop(self) -> None:
        """End the trial: the stream goes on elsewhere."""
        self.is_stopped = True
        self._end()

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        self.stream.accepted(prompt_ids, notes)

    def started(self) -> None:
        self.stream.started()

    def working(self, num_read: int = 0) -> None:
        self.stream.working(num_read)

    def interrupted(self, *, waits: bool) -> None:
        self.stream.interrupted(waits=waits)

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        self.stream.cached(num_tokens, prompt_tokens)

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        self.stream.prompt_logprobs(logprobs)

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        self.stream.delta(piece, num_tokens, token_ids, logprobs)
        self._progressed()

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        self.stream.reasoning(text, num_tokens, token_ids)
        self._progressed()

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        self.stream.tool_call(number, call_id, name, arguments, num_tokens)
        self._progressed()

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """End the trial if the engine has generated all its tokens, otherwise the stream."""
        if self.is_cut_by(reason, completion_tokens):
            self._end()
        else:
            self.stream.finish(reason, completion_tokens)

    def is_cut_by(self, reason: EngineFinish, completion_tokens: int) -> bool:
        """Return True if the engine ended the trial with this, and not the stream."""
        return self._is_cut and completion_tokens >= self.request.max_tokens and reason == "length"

    def fail(self, code: str, message: str) -> None:
        self.stream.fail(code, message)

    def lost(self) -> None:
        self.stream.lost()

    def silent(self, seconds: float, limit: float) -> None:
        self.stream.silent(seconds, limit)

    def _progressed(self) -> None:
        if not self._is_cut:
            self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


def _shortened(request: Request, num_tokens: int) -> Request:
    return msgspec.structs.replace(
        request, max_tokens=num_tokens, min_tokens=min(request.min_tokens, num_tokens)
    )
