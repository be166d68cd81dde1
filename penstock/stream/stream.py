"""One generation, from its request to its terminal event. It is the engine's sink.

In: what the engine pushes, and `cancel`. Out: a log that grows, and a wake-up for whoever reads
it. The text rules (whole characters, stop strings) are applied here, so that the log holds only
what may be sent. Not known here: HTTP, which engine, what others read.
"""

import asyncio
import time
from collections.abc import Callable

from penstock.engine.protocol import STATUSES, EngineFinish
from penstock.errors import BadRequest, EngineFailure, Problem, Unavailable
from penstock.events import Delta, Failure, Finish, FinishReason, TerminalEvent, Timings, Usage
from penstock.request import Request
from penstock.stream.log import Log
from penstock.text import Text


class Stream:
    """One generation and its log.

    `on_end` is called once, right after the terminal event: its second argument tells whether the
    engine itself ended the request (else it must still be told to stop). `was_accepted` resolves
    when the engine has taken the request, to None, or to the problem where it refused it.
    """

    __slots__ = (
        "_accepted_at",
        "_completion_tokens",
        "_first_delta_at",
        "_last_delta_at",
        "_on_end",
        "_pending_ids",
        "_pending_tokens",
        "_prompt_tokens",
        "_started_at",
        "_text",
        "_waiting",
        "log",
        "request",
        "was_accepted",
    )

    def __init__(self, request: Request, on_end: Callable[["Stream", bool], None]) -> None:
        self.request = request
        self.log = Log()
        self.was_accepted: asyncio.Future[Problem | None]
        self.was_accepted = asyncio.get_running_loop().create_future()
        self._on_end = on_end
        self._text = Text(request.stop)
        self._waiting: list[asyncio.Future[None]] = []
        self._prompt_tokens = 0
        self._completion_tokens = 0
        # Tokens whose text is still held back: they go with the next delta.
        self._pending_tokens = 0
        self._pending_ids: tuple[int, ...] = ()
        self._accepted_at = time.monotonic()
        self._started_at = 0.0
        self._first_delta_at = 0.0
        self._last_delta_at = 0.0

    @property
    def id(self) -> str:
        """The unguessable name of the stream."""
        return self.request.id

    @property
    def ended(self) -> TerminalEvent | None:
        """The terminal event, once there is one."""
        return self.log.terminal

    async def grown(self, cursor: int) -> None:
        """Wait until the log holds an event at `cursor`, or has ended."""
        while len(self.log) <= cursor and self.log.terminal is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    async def end(self) -> TerminalEvent:
        """Wait for the terminal event."""
        while self.log.terminal is None:
            await self.grown(len(self.log))
        return self.log.terminal

    def cancel(self) -> None:
        """End the stream now, as asked. Does nothing to one that has ended."""
        self._finish("cancelled", engine_done=False)

    # What the engine pushes (see engine.protocol.Sink).

    def accepted(self, prompt_tokens: int) -> None:
        """The prompt fits; wait for a slot."""
        self._prompt_tokens = prompt_tokens
        if not self.was_accepted.done():
            self.was_accepted.set_result(None)

    def started(self) -> None:
        """The request has a slot."""
        self._started_at = time.monotonic()

    def delta(self, piece: str | bytes, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """Log what of the text is certain."""
        if self.log.terminal is not None:
            return
        self._completion_tokens += num_tokens
        self._pending_tokens += num_tokens
        self._pending_ids += token_ids
        text = self._text.push(piece)
        if text:
            self._append(text)
        if self._text.stopped:
            self._finish("stop", engine_done=False)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """The engine is done."""
        if self.log.terminal is not None:
            return
        self._completion_tokens = completion_tokens
        if rest := self._text.flush():
            self._append(rest)
        self._finish(reason, engine_done=True)

    def fail(self, code: str, message: str) -> None:
        """The engine refused the request or gave up on it."""
        if self.log.terminal is not None:
            return
        status = STATUSES.get(code, 500)
        kind = {500: EngineFailure, 503: Unavailable, 429: Unavailable}.get(status, BadRequest)
        problem = kind(code, message, status=status)
        self._end(
            Failure(code, message, problem.retry_safe, self._usage(), self._timings()),
            engine_done=True,
            problem=problem,
        )

    def _append(self, text: str) -> None:
        now = time.monotonic()
        if not self._first_delta_at:
            self._first_delta_at = now
        self._last_delta_at = now
        self.log.append(Delta(text, self._pending_tokens, self._pending_ids))
        self._pending_tokens, self._pending_ids = 0, ()
        self._wake()

    def _finish(self, reason: FinishReason, *, engine_done: bool) -> None:
        if self.log.terminal is None:
            self._end(Finish(reason, self._usage(), self._timings()), engine_done, None)

    def _end(self, event: TerminalEvent, engine_done: bool, problem: Problem | None) -> None:
        self.log.append(event)
        if not self.was_accepted.done():
            self.was_accepted.set_result(problem)
        self._wake()
        self._on_end(self, engine_done)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._completion_tokens)

    def _timings(self) -> Timings:
        now = time.monotonic()
        began = self._accepted_at
        decode_time = self._last_delta_at - self._first_delta_at
        return Timings(
            queue_time=round((self._started_at or now) - began, 6),
            time_to_first_token=(
                round(self._first_delta_at - began, 6) if self._first_delta_at else None
            ),
            total_time=round(now - began, 6),
            tokens_per_second=(
                round((self._completion_tokens - 1) / decode_time, 3) if decode_time else None
            ),
        )
