"""Ends llama.cpp's answer, or has it go on differently, where llama.cpp itself cannot.

In: the tokens of one answer, which llama.cpp generates in several steps. Out: the calls of a
request's sink, as if there were one step; and where a step must end. llama.cpp knows no stop
tokens, no least number of tokens, and no thinking budget for a prompt that it did not render.
Not known here: how a step is sent to llama.cpp.
"""

import asyncio

from penstock.engine.protocol import EngineFinish, Sink
from penstock.engine.reasoning import FilterSink, Splitter
from penstock.events import TokenLogprob
from penstock.request import Request, UnnamedTokens


def needs_steps(request: Request) -> bool:
    """Return True if llama.cpp alone cannot generate the whole answer as it is asked for."""
    return bool(request.min_tokens or request.stop_token_ids) or request.thinking_budget is not None


class Steps(FilterSink):
    """The sink of an answer that llama.cpp generates in steps.

    `splitter` separates the reasoning, None without reasoning; `num_thoughts` is the number of
    tokens of the reasoning that a continued answer already has.
    """

    def __init__(
        self, sink: Sink, request: Request, splitter: Splitter | None, num_thoughts: int
    ) -> None:
        super().__init__(sink)
        self._request = request
        self._stop_ids = frozenset(request.stop_token_ids)
        self._splitter = splitter
        self._num_thoughts = num_thoughts
        self._generated: list[int | UnnamedTokens] = []
        self._is_partial = False
        self.num_tokens = 0
        self.has_ended = False
        self.step_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def num_unstoppable(self) -> int:
        """Return how many tokens must come before anything may end the answer."""
        return max(0, self._request.min_tokens - self.num_tokens)

    @property
    def must_end_thoughts(self) -> bool:
        """Return True if the model reasons and its thinking budget is used up."""
        budget = self._request.thinking_budget
        return budget is not None and self._is_thinking and self._num_thoughts >= budget

    def begin(self, *, is_partial: bool) -> None:
        """Begin a step; the answer goes on after a partial one."""
        self._is_partial = is_partial
        self.step_over = asyncio.get_running_loop().create_future()

    def take(self) -> tuple[int | UnnamedTokens, ...]:
        """Return the tokens of the steps so far, and forget them."""
        taken, self._generated = tuple(self._generated), []
        return taken

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Pass on tokens, and end the answer at a stop token."""
        if self.step_over.done():
            return
        if not self._stop_ids.isdisjoint(token_ids):
            self._sink.delta("", num_tokens, token_ids)
            self.num_tokens += num_tokens
            self._end("stop")
            self.step_over.set_result(None)
            return
        if self._is_partial and not piece and not token_ids:
            return  # the step ended within a character, which the next step generates again
        was_thinking = self._is_thinking
        self.push(piece, num_tokens, token_ids, logprobs)
        if was_thinking and self._is_thinking:
            self._num_thoughts += num_tokens
        if self.must_end_thoughts:
            self.step_over.set_result(None)

    def push(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Pass on tokens that the answer has, also ones that the model did not choose."""
        assert isinstance(piece, str)
        if len(token_ids) == num_tokens:
            self._generated += token_ids
        else:
            self._generated.append(UnnamedTokens(piece, num_tokens))
        self.num_tokens += num_tokens
        self._sink.delta(piece, num_tokens, token_ids, logprobs)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """End the answer, unless it goes on in another step."""
        if self.step_over.done():
            return
        if self._is_partial and reason == "length":
            self.step_over.set_result(None)
        else:
            self._end(reason)

    def _end(self, reason: EngineFinish) -> None:
        self.has_ended = True
        self._sink.finish(reason, self.num_tokens)

    @property
    def _is_thinking(self) -> bool:
        return self._splitter is not None and self._splitter.is_thinking
