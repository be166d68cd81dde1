"""Counts the tokens of a prompt without generating anything.

In: a request for 0 tokens. Out: the number of its prompt's tokens, by the engine. A count takes no
slot and does not wait in the queue; only `MAX_COUNTS` are under way at once, because each makes the
engine tokenise a prompt.
"""

import asyncio
from typing import Any

from penstock.errors import Problem
from penstock.events import TokenLogprob
from penstock.request import Request
from penstock.stream.dispatch import Dispatcher

MAX_COUNTS = 16


class PromptCounts:
    """The counts that are under way, on the engines of `dispatcher`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._num_under_way = 0

    async def count(self, request: Request) -> "PromptCount":
        """Return the count of this request's prompt. Raises Problem."""
        if self._num_under_way >= MAX_COUNTS:
            raise Problem(
                "queue_full",
                "The server is counting the tokens of many prompts. Try again in a moment.",
                headers={"Retry-After": "1"},
            )
        self._num_under_way += 1
        try:
            counted = PromptCount()
            self._dispatcher.submit_aside(request, counted)
            if problem := await counted.done:
                raise problem
            return counted
        finally:
            self._num_under_way -= 1


class PromptCount:
    """The sink of one count: the tokens, and the engine's notes on the prompt.

    `text` is the prompt's text if the request has `show_prompt`.
    """

    lane: None = None
    """There is no straight path (see `straight`)."""

    def __init__(self) -> None:
        self.token_ids: tuple[int, ...] = ()
        self.text = ""
        self.notes: tuple[str, ...] = ()
        self.done: asyncio.Future[Problem | None] = asyncio.get_running_loop().create_future()

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        """Note the prompt's tokens."""
        self.token_ids, self.notes = prompt_ids, notes

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Note the prompt's text."""
        if isinstance(piece, str):
            self.text += piece

    def finish(self, reason: str, completion_tokens: int) -> None:
        """Note that the count is complete."""
        self._end(None)

    def fail(self, code: str, message: str) -> None:
        """Note that the engine refuses the prompt."""
        self._end(Problem(code, message))

    def lost(self) -> None:
        """Note that the engine's process died."""
        self._end(
            Problem(
                "engine_died",
                "The engine stopped before it had counted the tokens. Send the request again.",
            )
        )

    def _end(self, problem: Problem | None) -> None:
        if not self.done.done():  # it is if the client has left
            self.done.set_result(problem)

    def _ignore(self, *_: Any, **__: Any) -> None:
        """Do nothing: nothing is generated."""

    started = working = interrupted = cached = prompt_logprobs = _ignore
    reasoning = tool_call = silent = _ignore
