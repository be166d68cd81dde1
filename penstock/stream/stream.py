"""One generation, from its request to its terminal event. It is the engine's sink.

In: what the engine pushes, and `cancel`. Out: a log that grows, and a wake-up for whoever reads
it. The text rules (whole characters, stop strings) are applied here, so that the log holds only
what may be sent. A stream outlives its engine's process: `continuation` is the request that takes
the generation up where it broke off. Not known here: HTTP, which engine, what others read.
"""

import asyncio
import time
from array import array
from typing import Literal, Protocol

import msgspec

from penstock.engine.protocol import EngineFinish
from penstock.errors import Problem
from penstock.events import (
    Delta,
    Failure,
    Finish,
    FinishReason,
    Reasoning,
    TerminalEvent,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from penstock.observe.meter import Meter
from penstock.request import Request, UnnamedTokens
from penstock.stream.admission import Place
from penstock.stream.log import Log
from penstock.stream.quotas import ANYBODY, Owner
from penstock.text import Text

Phase = Literal["queued", "submitted", "in line", "running", "progressed"]
"""Where a stream is: in the server's line; or how far the engine has come since the request was
last submitted: nothing yet, accepted, given a slot, something generated (or the request ended)."""


class StreamReader(Protocol):
    """What a stream knows of its readers (see `reader`)."""

    def wake(self, logged_at: float = 0.0) -> None:
        """The log has grown, at this time on the monotonic clock."""


class StreamObserver(Protocol):
    """Who decides what a stream itself does not (see `streams`)."""

    def stream_ended(self, stream: "Stream", *, engine_done: bool) -> None:
        """The stream has its terminal event, just now. `engine_done`: the engine itself ended the
        request, else it must still be told to stop."""

    def stream_lost(self, stream: "Stream") -> None:
        """The engine's process died with the stream's request in it."""

    def stream_read(self, stream: "Stream") -> None:
        """The stream has a reader, after it had none."""

    def stream_unread(self, stream: "Stream") -> None:
        """The stream's last reader has gone."""


class Stream:
    """One generation and its log.

    `resumable`: it may go on without readers, and be read again. `was_accepted` resolves when the
    engine has taken the request, to None, or to the problem where it refused it; and to None where
    the request must wait in line: what the engine says later then comes as the terminal event.

    `belongs_to` is whose it is. `first_id`: of several that are one answer, the id of the first.
    `opened_as` is for whoever opened it, to know how to show it to a reader that comes later.
    `meter` is told of what happens.
    """

    __slots__ = (
        "_completion_tokens",
        "_continued_from",
        "_end_waiter",
        "_first_delta_at",
        "_generated",
        "_last_delta_at",
        "_note_gap",
        "_num_textless",
        "_num_textless_logprobs",
        "_owner",
        "_pending_logprobs",
        "_pending_tokens",
        "_progress_waiter",
        "_prompt_ids",
        "_readers",
        "_reproducible",
        "_started_at",
        "_text",
        "_textless_ids",
        "admitted_at",
        "belongs_to",
        "client_gone",
        "first_id",
        "log",
        "meter",
        "num_readers_ever",
        "opened_as",
        "phase",
        "place",
        "request",
        "resumable",
        "was_accepted",
    )

    def __init__(
        self,
        request: Request,
        owner: StreamObserver,
        meter: Meter | None = None,
        *,
        resumable: bool = False,
        opened_as: object = None,
        belongs_to: Owner = ANYBODY,
        first_id: str | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.resumable = resumable
        self.opened_as = opened_as
        self.belongs_to = belongs_to
        self.first_id = first_id
        self.place: Place | None = None
        """Where in the line it stood when its readers were last told."""
        self.log = Log()
        self.was_accepted: asyncio.Future[Problem | None] = loop.create_future()
        self.phase: Phase = "submitted"
        self.client_gone = False
        self.num_readers_ever = 0
        self.meter = meter or Meter()
        self._note_gap = self.meter.engine_gap.add
        self._owner = owner
        # None as long as every piece is text as it comes: no stop strings, no bytes.
        self._text = Text(request.stop) if request.stop else None
        self._readers: list[StreamReader] = []
        self._end_waiter: asyncio.Future[None] | None = None
        self._progress_waiter: asyncio.Future[None] | None = None
        self._prompt_ids: array[int] | None = None
        # What was generated, up to the last token whose text has come...
        self._generated: list[int | UnnamedTokens] = []
        # ...and the tokens after it: the beginning of a character that the engine keeps back.
        self._textless_ids: tuple[int, ...] = ()
        self._num_textless = 0
        self._completion_tokens = 0
        self._continued_from = 0
        # Tokens whose text is not in the log yet: they go with the next delta.
        self._pending_tokens = 0
        self._pending_logprobs: list[TokenLogprob] = []
        self._num_textless_logprobs = 0
        self._reproducible = True
        self.admitted_at = time.monotonic()
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

    @property
    def can_go_on(self) -> bool:
        """Whether another engine could take the generation up where it is. The grammar of a
        schema, or of calls, cannot begin in the middle of an answer."""
        is_bound = self.request.json_schema is not None or self.request.tools is not None
        return not is_bound or not self._generated

    @property
    def num_readers(self) -> int:
        """Connections that read the stream, or wait for its whole answer."""
        return len(self._readers)

    def attach(self, reader: StreamReader) -> None:
        """Wake `reader` whenever the log grows."""
        self._readers.append(reader)
        self.num_readers_ever += 1
        if len(self._readers) == 1:
            self._owner.stream_read(self)

    def detach(self, reader: StreamReader) -> None:
        """Forget `reader`."""
        self._readers.remove(reader)
        if not self._readers:
            self._owner.stream_unread(self)

    async def end(self) -> TerminalEvent:
        """Wait for the terminal event."""
        if self.log.terminal is None:
            if self._end_waiter is None:
                self._end_waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._end_waiter)  # others may wait for it as well
        assert self.log.terminal is not None
        return self.log.terminal

    async def progressed(self) -> None:
        """Wait for the phase "progressed"."""
        if self.phase != "progressed":
            self._progress_waiter = asyncio.get_running_loop().create_future()
            await self._progress_waiter

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        if self.log.terminal is not None:
            return self.log.terminal.usage
        prompt_tokens = 0 if self._prompt_ids is None else len(self._prompt_ids)
        return Usage(prompt_tokens, self._completion_tokens)

    def cancel(self, *, client_gone: bool = False) -> None:
        """End the stream now, as asked, or since nobody reads it any more (`client_gone`). Does
        nothing to one that has ended."""
        self.client_gone = client_gone and self.log.terminal is None
        self._finish("cancelled", engine_done=False)

    def expire(self) -> None:
        """End the stream now, since its time is up. Does nothing to one that has ended."""
        self._finish("deadline", engine_done=False)

    def give_up(self, code: str, message: str, *, retry_safe: bool = True) -> None:
        """End the stream now, as failed. Does nothing to one that has ended."""
        self._fail(code, message, engine_done=False, retry_safe=retry_safe)

    def queue(self) -> None:
        """It must wait in line: its response may begin all the same."""
        self.phase = "queued"
        if not self.was_accepted.done():
            self.was_accepted.set_result(None)

    def tell(self, place: Place) -> None:
        """Have its readers told where in the line it stands."""
        self.place = place
        for reader in self._readers:
            reader.wake()

    def release(self) -> None:
        """Forget what only a running stream needs: from now on it is only read."""
        self.request = msgspec.structs.replace(self.request, prompt=None, messages=None, tools=None)
        self._prompt_ids, self._generated = None, []

    def continuation(self) -> Request:
        """The request that takes the generation up where it broke off, to be submitted now."""
        self.phase = "submitted"
        self.place = None
        if self._prompt_ids is None:  # it broke off before the prompt was read
            return self.request
        # Generated again: half a character is no place to go on from.
        self._completion_tokens -= self._num_textless
        self._pending_tokens -= self._num_textless
        self._textless_ids, self._num_textless = (), 0
        del self._pending_logprobs[len(self._pending_logprobs) - self._num_textless_logprobs :]
        self._num_textless_logprobs = 0
        self._continued_from = self._completion_tokens
        sampling = self.request.sampling
        if self._generated and sampling.seed is not None and sampling.temperature > 0:
            self._reproducible = False
        return msgspec.structs.replace(
            self.request,
            max_tokens=self.request.max_tokens - self._completion_tokens,
            prompt_ids=tuple(self._prompt_ids),
            generated=tuple(self._generated),
        )

    # What the engine pushes (see engine.protocol.Sink and engine.child.LosableSink).

    def accepted(self, prompt_ids: tuple[int, ...]) -> None:
        """The prompt fits; wait for a slot."""
        self.phase = "in line"
        if self._prompt_ids is None:
            self._prompt_ids = array("I", prompt_ids)
        if not self.was_accepted.done():
            self.was_accepted.set_result(None)

    def started(self) -> None:
        """The request has a slot."""
        self.phase = "running"
        if not self._started_at:
            self._started_at = time.monotonic()
            self.meter.stream_delayed(self._started_at - self.admitted_at)

    def working(self) -> None:
        """The engine is at the prompt: nothing to read yet."""

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Log what of the text is certain."""
        if self.log.terminal is not None:
            return
        self._completion_tokens += num_tokens
        self._pending_tokens += num_tokens
        if piece and len(token_ids) == num_tokens and not self._num_textless:
            self._generated += token_ids
        else:
            self._remember(piece, num_tokens, token_ids)
        if logprobs:
            self._pending_logprobs += logprobs
            self._num_textless_logprobs = (
                0 if piece else self._num_textless_logprobs + len(logprobs)
            )
        if self._text is None and isinstance(piece, str):
            if piece:
                self._append(piece)
        else:
            self._append_certain(piece)
        if self.phase != "progressed":
            self._note_progress()

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """Log it as it is: stop strings are for the answer."""
        if self.log.terminal is None:
            self._count(num_tokens)
            self._remember(text, num_tokens, token_ids)
            self._append(text, Reasoning(text, self._pending_tokens))
            self._note_progress()

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        """Log it as it is, after the text that was held back: no stop string goes on in a call."""
        if self.log.terminal is not None:
            return
        if self._text is not None:
            if held := self._text.flush():
                self._append(held)
            if self._text.stopped:
                self._finish("stop", engine_done=False)
                return
        self._count(num_tokens)
        self._generated.append(UnnamedTokens(arguments, num_tokens))
        call = ToolCall(arguments, self._pending_tokens, (), number, call_id, name)
        self._append(arguments, call)
        self._note_progress()

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """The engine is done."""
        if self.log.terminal is not None:
            return
        self._completion_tokens = self._continued_from + completion_tokens
        if self._text is not None and (rest := self._text.flush()):
            self._append(rest)
        self._finish(reason, engine_done=True)

    def fail(self, code: str, message: str) -> None:
        """The engine refused the request or gave up on it."""
        self._fail(code, message, engine_done=True, retry_safe=True)

    def lost(self) -> None:
        """The engine's process died."""
        if self.log.terminal is None:
            self._owner.stream_lost(self)

    def _count(self, num_tokens: int) -> None:
        self._completion_tokens += num_tokens
        self._pending_tokens += num_tokens

    def _remember(self, piece: str | bytes, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """Keep what a continuation begins with."""
        if self._num_textless or not piece:
            token_ids = self._textless_ids + token_ids
            num_tokens += self._num_textless
        if not piece:
            self._textless_ids, self._num_textless = token_ids, num_tokens
            return
        if len(token_ids) == num_tokens:
            self._generated += token_ids
        else:
            text = piece if isinstance(piece, str) else piece.decode("utf-8", "replace")
            self._generated.append(UnnamedTokens(text, num_tokens))
        self._textless_ids, self._num_textless = (), 0

    def _append_certain(self, piece: str | bytes) -> None:
        """Log what is text for certain: half a character is not, nor what may become a stop."""
        if self._text is None:
            self._text = Text()
        if text := self._text.push(piece):
            self._append(text)
        if self._text.stopped:
            self._finish("stop", engine_done=False)

    def _append(self, text: str, event: Delta | None = None) -> None:
        """Log an event, by default a delta with this text."""
        now = time.monotonic()
        if self._first_delta_at:
            self._note_gap(now - self._last_delta_at)
        else:
            self._first_delta_at = now
            queue_time = (self._started_at or now) - self.admitted_at
            self.meter.first_delta(queue_time, now - self.admitted_at)
        self._last_delta_at = now
        if event is not None:
            self.log.append(event)
        elif self._pending_logprobs:
            self.log.append(Delta(text, self._pending_tokens, self._logprobs_of(text)))
            self._pending_logprobs = []
        else:
            self.log.append(Delta(text, self._pending_tokens))
        self._pending_tokens = 0
        for reader in self._readers:
            reader.wake(now)

    def _logprobs_of(self, text: str) -> tuple[TokenLogprob, ...]:
        """Those that go with this text: all that have come, unless a stop string has cut it."""
        logprobs = self._pending_logprobs
        if self._text is not None and self._text.stopped:
            left = len(text.encode())
            for index, each in enumerate(logprobs):
                if left <= 0:
                    return tuple(logprobs[:index])
                left -= len(each.token)
        return tuple(logprobs)

    def _finish(self, reason: FinishReason, *, engine_done: bool) -> None:
        if self.log.terminal is None:
            end = Finish(reason, self.usage, self._timings(), self._reproducible)
            self._end(end, engine_done, None)

    def _fail(self, code: str, message: str, *, engine_done: bool, retry_safe: bool) -> None:
        if self.log.terminal is not None:
            return
        problem = Problem(code, message, retry_safe=retry_safe)
        end = Failure(code, message, problem.retry_safe, self.usage, self._timings())
        self._end(end, engine_done, problem)

    def _end(self, event: TerminalEvent, engine_done: bool, problem: Problem | None) -> None:
        self.log.end(event)
        self.place = None
        if not self.was_accepted.done():
            self.was_accepted.set_result(problem)
        elif not self._started_at:
            self.meter.stream_delayed(event.timings.queue_time)  # it left the line
        if self._end_waiter is not None:
            self._end_waiter.set_result(None)
        self._note_progress()
        now = time.monotonic()
        for reader in self._readers:
            reader.wake(now)
        self._owner.stream_ended(self, engine_done=engine_done)

    def _note_progress(self) -> None:
        self.phase = "progressed"
        if self._progress_waiter is not None and not self._progress_waiter.done():
            self._progress_waiter.set_result(None)

    def _timings(self) -> Timings:
        now = time.monotonic()
        began = self.admitted_at
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
