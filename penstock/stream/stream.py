"""One generation, from its request to its terminal event.

A stream is the engine's sink: it turns what the engine pushes into events of its log and wakes its
readers. It applies the text rules (whole characters, stop strings), so the log holds only text
that may be sent. A stream outlives its engine's process: `continuation` is the request that
continues it on another one. It knows nothing about HTTP or about which engine runs it.
"""

import asyncio
import time
from array import array
from typing import Literal

import msgspec

from penstock.engine.protocol import EngineFinish, LosableSink
from penstock.errors import Problem
from penstock.events import (
    Delta,
    Failure,
    Finish,
    FinishReason,
    PromptLogprobs,
    Reasoning,
    TerminalEvent,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from penstock.observe.meter import Meter
from penstock.request import Request
from penstock.stream import entries
from penstock.stream.admission import Place
from penstock.stream.footprint import (
    PACKED_TOKEN_BYTES,
    READER_BYTES,
    STREAM_BYTES,
    prompt_logprobs_bytes,
    record_bytes,
)
from penstock.stream.lane import Lane
from penstock.stream.log import Log
from penstock.stream.protocol import Keeper, StreamObserver, StreamReader
from penstock.stream.record import StreamRecord
from penstock.stream.status import Status, Watcher
from penstock.stream.timing import StreamTimer
from penstock.stream.transcript import Transcript
from penstock.text import Text

Phase = Literal["queued", "submitted", "accepted", "running", "progressed"]
"""How far a stream has come. "queued": it waits in the server's queue. The other phases count from
the last submission to an engine: nothing happened yet, the engine accepted the prompt, the request
has a slot, something was generated (or the request ended)."""

EARLY_TOKENS = 256
"""A replica that is lost before it generated so many tokens of a stream may have died of it."""


class Stream:
    """One generation and its log.

    `was_accepted` resolves when the engine has accepted or refused the request: to None, or to the
    problem. It also resolves to None if the request must wait in the queue; a later refusal then
    becomes the terminal event.
    """

    __slots__ = (
        "_counted_elsewhere",
        "_end_waiter",
        "_is_engine_done",
        "_late_notes",
        "_observer",
        "_readers",
        "_record_bytes",
        "_shown_prompt_ids",
        "client_gone",
        "deaths",
        "deaths_alone",
        "is_over",
        "keeper",
        "lane",
        "log",
        "lost_before_token",
        "lost_early",
        "meter",
        "notes",
        "num_readers_ever",
        "num_tokens_before",
        "phase",
        "place",
        "prompt_logprobs_found",
        "record",
        "text",
        "timer",
        "torn_at",
        "transcript",
        "trouble",
        "was_accepted",
        "watchers",
    )

    def __init__(
        self, record: StreamRecord, observer: StreamObserver, meter: Meter | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.record = record
        self.log = Log()
        self.phase: Phase = "submitted"
        self.place: Place | None = None
        """The place in the queue that readers were last told."""
        self.was_accepted: asyncio.Future[Problem | None] = loop.create_future()
        self.prompt_logprobs_found: PromptLogprobs | None = None
        """The log probabilities of the prompt's tokens, if the request asks for them."""
        self._late_notes: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        """What the engine changed in the request to be able to answer it, known once it is
        accepted by the engine."""
        self.lane: Lane | None = None
        """Set while the straight path sends the stream's deltas (see `straight`)."""
        self.watchers: tuple[Watcher, ...] = ()
        """Those who asked for statuses. Few do, so the others must not pay for it."""
        self.trouble: Status | None = None
        """Why no tokens come, if that is not the stream's own doing."""
        self.client_gone = False
        self.num_readers_ever = 0
        self.meter = meter or Meter()
        self._observer = observer
        self.keeper: Keeper | None = None
        """Set if the stream is stored."""
        self.is_over = False
        """True once it is decided how the stream ends. A stored stream gets its terminal event
        later, when the store has it."""
        self.torn_at: int | None = None
        """The number of events in the log where the store first may have lost others. A client that
        has seen more than these may have seen lost events. None if nothing may be lost."""
        self._is_engine_done = False
        self._counted_elsewhere: Usage | None = None
        self.transcript = Transcript()
        self.timer = StreamTimer(self.meter)
        self._shown_prompt_ids: array[int] | None = None
        self._record_bytes = -1  # not counted yet
        # None as long as every piece is plain text: no stop strings, no bytes, no ids in deltas.
        request = record.request
        self.text = Text(request.stop) if request.stop or request.return_token_ids else None
        self._readers: list[StreamReader] = []
        self._end_waiter: asyncio.Future[None] | None = None
        # What `recovery` knows of the stream.
        self.deaths = 0
        """How often the engine died while it worked on the stream, and nobody knows why."""
        self.deaths_alone = 0
        """How often the engine died while it worked on nothing but the stream."""
        self.lost_before_token = 0
        """How many replicas in a row were lost before they generated anything for the stream."""
        self.lost_early = 0
        """How many replicas in a row were lost before they generated EARLY_TOKENS for it."""
        self.num_tokens_before = 0
        """The number of generated tokens when the stream was last submitted."""

    @property
    def id(self) -> str:
        """Return the stream's unguessable id."""
        return self.record.request.id

    @property
    def resumable(self) -> bool:
        """Return True if the stream outlives its connection and can be read again."""
        return self.record.resumable

    @property
    def ended(self) -> TerminalEvent | None:
        """Return the terminal event, or None while the stream runs."""
        return self.log.terminal

    @property
    def admitted_at(self) -> float:
        """Return when the stream was admitted, on the monotonic clock."""
        return self.timer.began

    @property
    def usage(self) -> Usage:
        """Return the token counts so far."""
        if self.lane is not None:
            self.lane.count()
        return self.transcript.usage if self.log.terminal is None else self.log.terminal.usage

    @property
    def prompt_ids(self) -> tuple[int, ...] | None:
        """Return the prompt's token ids, if the request asks for ids and the engine has them."""
        return None if self._shown_prompt_ids is None else tuple(self._shown_prompt_ids)

    def num_bytes(self) -> int:
        """Return how much memory the stream takes, with its readers, in bytes."""
        if self._record_bytes < 0:
            self._record_bytes = record_bytes(self.record)
        return (
            STREAM_BYTES
            + self._record_bytes
            + self.log.num_bytes()
            + self.transcript.num_bytes()
            + (0 if self.text is None else self.text.num_bytes)
            + len(self._shown_prompt_ids or ()) * PACKED_TOKEN_BYTES
            + prompt_logprobs_bytes(self.prompt_logprobs_found)
            + len(self._readers) * READER_BYTES
        )

    @property
    def counted_usage(self) -> Usage:
        """Return the token counts to add up over streams: several choices have one prompt."""
        usage = self.usage
        if (before := self._counted_elsewhere) is not None:
            return Usage(
                max(0, usage.prompt_tokens - before.prompt_tokens),
                max(0, usage.completion_tokens - before.completion_tokens),
            )
        return usage if self.record.counts_prompt else Usage(0, usage.completion_tokens)

    def count_from_here(self) -> None:
        """Count only tokens that come from now on: other replicas have counted the others."""
        self._counted_elsewhere = self.usage

    @property
    def num_tokens(self) -> int:
        """Return how many tokens of the answer there are so far, without making an object."""
        if self.log.terminal is not None:
            return self.log.terminal.usage.completion_tokens
        return self.transcript.completion_tokens if self.lane is None else self.lane.num_tokens

    @property
    def num_tokens_here(self) -> int:
        """Return how many of the answer's tokens were generated at this replica."""
        before = self._counted_elsewhere
        return self.num_tokens - (0 if before is None else before.completion_tokens)

    @property
    def last_delta_at(self) -> float:
        """Return when the last delta came, on the monotonic clock; 0.0 before the first."""
        return self.timer.last_delta_at if self.lane is None else self.lane.logged_at

    def greatest_lag(self) -> int:
        """Return how many events the slowest reader is behind."""
        if self.lane is not None:  # its only reader has seen everything
            return 0
        return max([reader.lag for reader in self._readers], default=0)

    def num_counted_tokens(self) -> int:
        """Return the tokens of the prompt and the answer so far, to add up over streams."""
        return self.counted_usage.total_tokens

    @property
    def can_continue(self) -> bool:
        """Return True if another engine can continue the generation from here.

        Part of a JSON value or of a tool call cannot: no engine's grammar can start in its middle.
        """
        request = self.record.request
        is_bound = request.json_schema is not None or request.grammar is not None
        return not (self.transcript.has_called or (is_bound and self.transcript.generated))

    @property
    def can_pause(self) -> bool:
        """Return True if the generation could also continue after more tokens."""
        request = self.record.request
        return (request.json_schema or request.grammar or request.tools) is None

    # Readers.

    def attach(self, reader: StreamReader) -> None:
        """Wake `reader` whenever the log grows."""
        self.leave_lane()
        self._readers.append(reader)
        self.num_readers_ever += 1
        if len(self._readers) == 1:
            self._observer.stream_read(self)

    def detach(self, reader: StreamReader) -> None:
        """Forget `reader`."""
        self._readers.remove(reader)
        if not self._readers:
            self._observer.stream_unread(self)

    @property
    def num_readers(self) -> int:
        """Return how many connections read the stream or wait for its whole answer."""
        return len(self._readers)

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` what happens to the stream, from what it does now on."""
        self.watchers += (watcher,)
        if self.is_over:
            return
        if self.trouble is not None:
            watcher.tell(self.trouble, len(self.log))
        elif self.phase in ("running", "progressed"):
            watcher.tell(self._at_work(), 0)

    def unwatch(self, watcher: Watcher) -> None:
        """Tell `watcher` nothing more."""
        self.watchers = tuple(each for each in self.watchers if each is not watcher)

    def _tell(self, status: Status) -> None:
        for watcher in self.watchers:
            watcher.tell(status, len(self.log))

    def open_lane(self, lane: Lane, cursor: int) -> bool:
        """Let the straight path send what comes next, if that is plain text for one reader.

        The reader, whose place in the log is `cursor`, must have seen everything. Return False if
        the stream is not so.
        """
        transcript = self.transcript
        if (
            self.text is not None
            or self.phase != "progressed"
            or self.trouble is not None  # the next token ends it
            or self.is_over
            or len(self._readers) != 1
            or transcript.num_textless
            or transcript.pending_tokens
        ):
            return False
        lane.open(cursor, transcript, self.timer, self.log.events)
        self.lane = lane
        return True

    def leave_lane(self) -> None:
        """Take the general path from now on, until a lane is opened again."""
        if self.lane is not None:
            self.lane.reader.leave_lane()

    async def end(self) -> TerminalEvent:
        """Wait for the terminal event and return it."""
        if self.log.terminal is None:
            if self._end_waiter is None:
                self._end_waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._end_waiter)  # others may wait for it too
        assert self.log.terminal is not None
        return self.log.terminal

    @property
    def num_new_tokens(self) -> int:
        """Return how many tokens were generated since the stream was last submitted."""
        return self.usage.completion_tokens - self.num_tokens_before

    # Decisions of the server. None of them does anything to a stream that has ended.

    def cancel(self, *, client_gone: bool = False) -> None:
        """End the stream because a client asked, or because nobody reads it (`client_gone`)."""
        self._decide(entries.Cancelled(client_gone))

    def expire(self) -> None:
        """End the stream because its time is up."""
        self._decide(entries.Expired())

    def give_up(self, code: str, message: str, *, retry_safe: bool = True) -> None:
        """End the stream as failed."""
        self.refuse(Problem(code, message, retry_safe=retry_safe))

    def refuse(self, problem: Problem) -> None:
        """End the stream with this problem."""
        self._decide(entries.refused(problem))

    def finish_at_limit(self) -> None:
        """End the stream, which has all its tokens already."""
        self._decide(entries.Finished("length", 0))

    def _decide(self, decision: entries.Decision) -> None:
        if self.is_over:
            return
        if self.keeper is None:
            decision.apply(self)
        else:
            self.keeper.decide(self, decision)

    def enqueue(self, *, starts_soon: bool = False) -> None:
        """Note that the stream waits in the queue; its response may begin now.

        If the stream `starts_soon`, its response begins when it is told its place in the queue, or
        when the engine has accepted or refused it before.
        """
        self.phase = "queued"
        if not starts_soon:
            self._accept(None)

    def tell_place(self, place: Place) -> None:
        """Have the readers told the stream's place in the queue."""
        self._accept(None)
        self.place = place
        for reader in self._readers:
            reader.wake()

    def release(self) -> None:
        """Free what only a running stream needs; from now on the stream is only read."""
        request = self.record.request
        kept = Request(request.id, request.max_tokens)
        self.record = msgspec.structs.replace(self.record, request=kept)
        self._record_bytes = -1
        self.transcript.release()
        self.text = None

    def note_submitted(self) -> None:
        """Store that an engine gets the request now: it may die of it, and its server, too."""
        if self.keeper is not None:
            self.keeper.note(self, entries.Submitted(self.deaths, self.deaths_alone))

    def continuation(self) -> Request:
        """Return the request that begins or continues the generation. Submit it at once."""
        request = self.resubmit()
        self.note_submitted()
        if self.prompt_logprobs_found is not None:
            request = msgspec.structs.replace(request, prompt_logprobs=None)
        return request

    def sink(self, target: LosableSink | None = None) -> LosableSink:
        """Return what an engine must push into so that `target`, or the stream, gets it."""
        if self.keeper is None:
            return target or self
        return self.keeper.sink(self, target)

    @property
    def num_tokens_left(self) -> int:
        """Return how many more tokens the stream may have; at least 1 before its first."""
        generated = self.transcript.completion_tokens - self.transcript.num_textless
        return self.record.request.max_tokens - generated if generated else 1

    def resubmit(self) -> Request:
        """Note that the stream is submitted to an engine, and return the request for it."""
        self.leave_lane()
        self.phase = "submitted"
        self.place = None
        request = self.transcript.continuation(self.record.request)
        self.num_tokens_before = self.transcript.completion_tokens
        return request

    # What the engine pushes (see engine.protocol.Sink and LosableSink).

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        """Record the prompt's tokens and the engine's notes; the request waits for a slot."""
        if self.is_over:
            return
        self.phase = "accepted"
        if not self.notes:  # a continuation has none
            self.notes = notes
            if self.was_accepted.done():  # it waited in the queue, so its response has begun
                self._late_notes = notes
        self.transcript.accept(prompt_ids)
        if self.record.request.return_token_ids:
            self._shown_prompt_ids = self.transcript.prompt_ids
        self._observer.stream_accepted(self)
        self._accept(None)

    def started(self) -> None:
        """Note that the request has a slot."""
        if self.is_over:
            return
        self.phase = "running"
        self.trouble = None
        self.timer.start()
        if self.watchers:
            self.working()

    def working(self, num_read: int = 0) -> None:
        """Tell how much of the prompt the engine has read."""
        if self.watchers and self.phase == "running":
            self._tell(self._at_work(num_read))

    def interrupted(self, *, waits: bool) -> None:
        """Tell that the answer goes on at another upstream, or `waits` for one."""
        if self.is_over:
            return
        self.leave_lane()
        self.trouble = Status("waiting" if waits else "continuing", tokens=self.num_tokens)
        self._accept(None)  # its client is told that it waits, and a refusal may come later
        self._tell(self.trouble)

    def silent(self, seconds: float, limit: float) -> None:
        """Tell for how long the engine has given no sign of life; after 0 s it gives one again.

        A response that waits for the engine begins now, so its client can be told.
        """
        if self.is_over:
            return
        self._accept(None)
        stalled = Status("stalled", seconds=round(seconds, 1), limit=limit)
        self.trouble = stalled if seconds else None
        if self.watchers:
            self._tell(self.trouble or self._at_work())

    def _at_work(self, num_read: int = 0) -> Status:
        usage = self.usage
        if self.phase == "progressed":
            return Status("generating", tokens=usage.completion_tokens)
        return Status("prefill", prompt_tokens=usage.total_tokens, read_tokens=num_read or None)

    def _note_progress(self) -> None:
        """Tell that tokens come, before the first of them is logged."""
        self.trouble = None
        self._tell(Status("generating", tokens=self.usage.completion_tokens))

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        """Record how much of the prompt was in the engine's cache, and perhaps its length."""
        self.transcript.cached(num_tokens, prompt_tokens)

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        """Record the log probabilities of the prompt's tokens."""
        self.prompt_logprobs_found = logprobs

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Log the part of the text that is certain."""
        if self.is_over:
            return
        self.leave_lane()
        if self.phase != "progressed" or self.trouble is not None:
            self.phase = "progressed"
            if self.watchers or self.trouble:
                self._note_progress()
        transcript = self.transcript
        if (
            self.text is None
            and piece
            and piece.__class__ is str
            and len(token_ids) == num_tokens
            and not (logprobs or transcript.num_textless)
        ):
            # Nearly every token: the same as below, in fewer calls.
            transcript.completion_tokens += num_tokens
            transcript.generated += token_ids
            self._append(Delta(piece, transcript.pending_tokens + num_tokens))
        else:
            transcript.add(piece, num_tokens, token_ids, logprobs)
            self._append_certain(piece)

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        """Log reasoning unchanged: stop strings apply to the answer only."""
        if not self.is_over:
            self.leave_lane()
            if self.phase != "progressed" or self.trouble is not None:
                self.phase = "progressed"
                self._note_progress()
            self.transcript.add(text, num_tokens, token_ids, is_reasoning=True)
            pending = self.transcript.pending_tokens
            self._append(Reasoning(text, pending, token_ids=self._take_ids()))

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        """Log part of a tool call, after any text held back: no stop string spans a call."""
        if self.is_over:
            return
        self.leave_lane()
        if self.phase != "progressed" or self.trouble is not None:
            self.phase = "progressed"
            self._note_progress()
        if self.text is not None:
            if held := self.text.flush():
                self._append_text(held)
            if self.text.stopped:
                self.end_as("stop", engine_done=False)
                return
        self.transcript.add_call(arguments, num_tokens)
        pending = self.transcript.pending_tokens
        self._append(
            ToolCall(arguments, pending, (), number, call_id, name, token_ids=self._take_ids())
        )

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """Log the text still held back, then the end."""
        if self.is_over:
            return
        self.leave_lane()
        self.transcript.finish(completion_tokens)
        if self.text is not None and (rest := self.text.flush()):
            self._append_text(rest)
        self.end_as(reason, engine_done=True)

    def fail(self, code: str, message: str) -> None:
        """End the stream: the engine refused the request or gave up on it."""
        self.end_as_failed(Problem(code, message), engine_done=True)

    def lost(self) -> None:
        """Report that the engine's process died."""
        if self.is_over:
            return
        self._observer.stream_lost(self)
        if not self.is_over:  # the observer may have given it up
            self.trouble = Status("restarting", tokens=self.usage.completion_tokens)
            self._tell(self.trouble)

    # How the log grows.

    def _append_certain(self, piece: str | bytes) -> None:
        """Log certain text only: neither half a character nor the beginning of a stop string."""
        if self.text is None:
            if isinstance(piece, str):
                if piece:
                    self._append_text(piece)
                return
            self.text = Text()
        if self.transcript.completion_tokens <= self.record.request.min_tokens:
            text = self.text.push_unstopped(piece)
        else:
            text = self.text.push(piece)
        if text:
            self._append_text(text)
        if self.text.stopped:
            self.end_as("stop", engine_done=False)

    def _append_text(self, text: str) -> None:
        transcript = self.transcript
        logprobs = transcript.take_logprobs(text, self.text) if transcript.pending_logprobs else ()
        self._append(Delta(text, transcript.pending_tokens, logprobs, token_ids=self._take_ids()))

    def _take_ids(self) -> tuple[int, ...]:
        """Return the ids of the pending tokens if the request asked for ids, and forget them."""
        transcript = self.transcript
        ids, transcript.pending_ids = transcript.pending_ids, ()
        return ids if self.record.request.return_token_ids else ()

    def _append(self, event: Delta) -> None:
        now = time.monotonic()
        timer = self.timer
        if timer.first_delta_at:
            timer.note_gap(now - timer.last_delta_at)
        else:
            timer.first_delta(now)
        timer.last_delta_at = now
        self.log.append(event)
        self.transcript.pending_tokens = 0
        for reader in self._readers:
            reader.wake(now)

    # Between replicas.

    def was_claimed(self) -> None:
        """Note that the stream lost its owner, and has a new one."""
        if self.phase in ("submitted", "running", "progressed"):
            self.lost_before_token = 0 if self.phase == "progressed" else self.lost_before_token + 1
            is_early = self.num_new_tokens < EARLY_TOKENS
            self.lost_early = self.lost_early + 1 if is_early else 0
        self.phase = "queued"
        self._move()

    def was_torn(self) -> None:
        """Note that the store may have lost events that followed here, and were shown."""
        if self.torn_at is None:
            self.torn_at = len(self.log)

    def _move(self) -> None:
        self.trouble = Status("moved", tokens=self.usage.completion_tokens)
        self._tell(self.trouble)

    @property
    def age(self) -> float:
        """Return the seconds since the stream's admission."""
        return time.monotonic() - self.timer.began

    def timings_now(self) -> Timings:
        """Return the stream's times so far."""
        return self.timer.timings(self.usage.completion_tokens)

    def pass_on(self, observer: StreamObserver, keeper: Keeper | None) -> None:
        """Let others decide about the stream and store it from now on."""
        self.leave_lane()
        self._observer = observer
        self.keeper = keeper

    def cut_readers(self) -> None:
        """Cut the connections of the readers: nobody here knows how the stream goes on."""
        for reader in list(self._readers):
            reader.cut()

    def wait_anew(self) -> None:
        """Wait in the queue again, in another replica."""
        self.phase = "queued"
        self._accept(None)

    def end_with(self, event: TerminalEvent, problem: Problem | None = None) -> None:
        """End the stream with this terminal event, whatever was decided."""
        self.is_over = True
        if self.log.terminal is None:
            self.leave_lane()
            self._end(event, problem)

    # How the stream ends.

    def end_as(self, reason: FinishReason, *, engine_done: bool) -> None:
        """End the stream for this reason, unless its end is decided already.

        `engine_done` is as in `StreamObserver.stream_ended`.
        """
        if not self.is_over:
            self.leave_lane()
            usage = self.transcript.usage
            timings = self.timer.timings(usage.completion_tokens)
            reproducible = self.transcript.reproducible
            stop_string = None if self.text is None else self.text.stopped_by
            ids, notes = self._take_ids(), self._late_notes
            end = Finish(reason, usage, timings, reproducible, ids, stop_string, notes)
            self._conclude(end, engine_done, None)

    def end_as_failed(self, problem: Problem, *, engine_done: bool) -> None:
        """End the stream with this problem, unless its end is decided already.

        `engine_done` is as in `StreamObserver.stream_ended`.
        """
        if self.is_over:
            return
        self.leave_lane()
        usage = self.transcript.usage
        timings = self.timer.timings(usage.completion_tokens)
        end = Failure(problem.code, problem.detail, problem.retry_safe, usage, timings)
        self._conclude(end, engine_done, problem)

    def _conclude(self, end: TerminalEvent, engine_done: bool, problem: Problem | None) -> None:
        self.is_over = True
        self._is_engine_done = engine_done
        if self.keeper is None:
            self._end(end, problem)
        else:
            self.keeper.conclude(self, end, problem)

    def _end(self, event: TerminalEvent, problem: Problem | None) -> None:
        self.log.end(event)
        self.place = None
        if not self._accept(problem):
            self.timer.leave_queue(event.timings)
        if self._end_waiter is not None:
            self._end_waiter.set_result(None)
        self.phase = "progressed"
        now = time.monotonic()
        for reader in self._readers:
            reader.wake(now)
        self._observer.stream_ended(self, engine_done=self._is_engine_done)

    def _accept(self, problem: Problem | None) -> bool:
        """Resolve `was_accepted`; return False if it was resolved before."""
        if self.was_accepted.done():
            return False
        self.was_accepted.set_result(problem)
        return True
