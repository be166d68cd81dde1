"""All streams of a server: open, find, cancel and drain them.

A stream gets a slot when it is its turn (see `admission`) and then goes to an engine (see
`dispatch`). Streams that lost their engine keep their slots and continue before any other starts.

A stream that nobody reads lingers (see `lingering`). Ended streams are kept and remembered in
`kept`. HTTP and concrete engines are not known here.
"""

import asyncio
import functools
import logging
import math
import secrets
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from penstock.engine.protocol import EngineHandle
from penstock.errors import EngineUnavailable, Problem
from penstock.events import finish_reason_of
from penstock.observe.meter import Meter
from penstock.request import Request
from penstock.stream.admission import Admission, Ticket
from penstock.stream.budget import Claim
from penstock.stream.counting import PromptCount, PromptCounts
from penstock.stream.deadlines import RESOLUTION_S, Deadlines
from penstock.stream.dispatch import Dispatcher
from penstock.stream.endings import log_unread, meter_end, meter_move
from penstock.stream.fleet import Fleet, store_unavailable
from penstock.stream.kept import KeptStreams
from penstock.stream.lingering import Lingering
from penstock.stream.memory import FULL
from penstock.stream.queue import QueueNotices
from penstock.stream.quotas import ANYBODY, Owner, Quotas
from penstock.stream.reader import Reader
from penstock.stream.record import StreamRecord
from penstock.stream.recovery import NOT_BACK
from penstock.stream.shared_limits import Exchange, keep_exchanging
from penstock.stream.stored import StoredStreams
from penstock.stream.stream import Stream

log = logging.getLogger("penstock.stream")
MEMORY_RETRY_AFTER_S = 5
# A stream that was taken over has at least so long to end.
MIN_TIME_LEFT_S = 1.0


@dataclass(frozen=True)
class Replication:
    """What streams need of a store of logs: their own logs in it, and those of other replicas."""

    stored: StoredStreams
    fleet: Fleet


@dataclass(frozen=True)
class Limits:
    """The server's limits on streams, in seconds and bytes.

    `linger` is how long a resumable stream continues without readers. `retain` and `retain_bytes`
    limit how long and in how much memory ended streams are kept. `restart_timeout` is how long
    streams wait for a dead engine. `max_timeout` limits a stream from its admission to its end; 0
    means no limit.
    """

    linger: float = 60.0
    retain: float = 300.0
    retain_bytes: int = 256 * 1024 * 1024
    restart_timeout: float = 300.0
    max_timeout: float = 0.0


class Streams:
    """The streams of one server, over one or several engines."""

    def __init__(
        self,
        engines: Sequence[EngineHandle],
        limits: Limits | None = None,
        meter: Meter | None = None,
        admission: Admission | None = None,
        problem_of: Callable[[Owner], Problem | None] = lambda owner: None,
        replication: Replication | None = None,
    ) -> None:
        """`problem_of` returns the problem of an owner whose key is no longer accepted.

        With `replication`, resumable streams are stored and shared with other replicas.
        """
        self.meter = meter or Meter()
        self.admission = admission or Admission()
        self._limits = limits or Limits()
        self._dispatcher = Dispatcher(
            engines, self._limits.restart_timeout, self._give_up_queued, self._fill_slots
        )
        self.admission.num_stopping_of = self._dispatcher.num_stopping_of
        self._counts = PromptCounts(self._dispatcher)
        self._quotas = Quotas()
        self._problem_of = problem_of
        self._stored = None if replication is None else replication.stored
        self.fleet = None if replication is None else replication.fleet
        """The streams of other replicas, if there is a store."""
        if self.fleet is not None:
            self.fleet.attach(self)
        self.kept = KeptStreams(self._quotas, self._limits.retain, self._limits.retain_bytes)
        self._open: dict[str, Stream] = {}
        self._notices = QueueNotices(self.admission.places, self._open.__getitem__)
        self._deadlines = Deadlines(lambda stream_id: self._open[stream_id].expire())
        self._lingering = Lingering(self._limits.linger, self.fleet)
        self._moves: dict[str, asyncio.Event] = {}
        """Set when another replica takes a stream that is being cancelled here."""
        # Readers that have a token, and the owner of its key, for as long as their responses last.
        self._lent: weakref.WeakKeyDictionary[Reader, Owner] = weakref.WeakKeyDictionary()
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_adopted: list[Callable[[Stream], None]] = []
        """Called with each stream that this server takes over from another replica."""
        self.draining = False
        self.is_handing_over = False
        """True while requests that wait here stay where they are: other replicas take them."""
        self.is_leaving = False
        """True once the server is about to drain: it should get no new requests."""
        self.memory_is_full = False
        """True while new requests are refused because the memory is nearly full (see `memory`)."""
        self._is_shut_down = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def may_adopt(self) -> bool:
        """Return True unless this server gives its streams away or ends them.

        One that drains also goes on with the streams of a server that dies meanwhile.
        """
        return not (self.is_handing_over or self._is_shut_down)

    def open_streams(self) -> list[Stream]:
        """Return the streams that have not ended."""
        return list(self._open.values())

    @property
    def is_recovering(self) -> bool:
        """Return True while streams wait to continue after their engine's death."""
        return self._dispatcher.is_recovering

    @property
    def num_stopping(self) -> int:
        """Return how many cancelled requests the engines have not let go of yet."""
        return self._dispatcher.num_stopping

    def context_length(self, model: str) -> int | None:
        """Return a model's context in tokens, or None until an engine was ready."""
        return self._dispatcher.context_length(model)

    def check(
        self,
        owner: Owner = ANYBODY,
        *,
        resumable: bool = False,
        num_streams: int = 1,
        has_place: bool = False,
    ) -> None:
        """Raise Problem if `owner` cannot open `num_streams` streams now, whatever they ask for.

        With `has_place`, the queue is not asked for room. This costs almost nothing, so call it
        before any other work for a request.
        """
        if self.draining:
            raise draining()
        if self.memory_is_full:
            raise _memory_full()
        if owner.key_id and (problem := self._problem_of(owner)):
            raise problem
        if problem := self._dispatcher.refusal():
            raise problem
        if not has_place:
            self._check_room(owner, 0)
        refusal = self._quotas.refusal(owner, resumable=resumable, num_streams=num_streams)
        if refusal is not None:
            raise refusal
        if resumable and self.fleet is not None and self.fleet.problem:
            raise store_unavailable()

    def open_all(self, records: Sequence[StreamRecord], *, has_place: bool = False) -> list[Stream]:
        """Open the choices of an answer: all of them or none. Raises Problem.

        With `has_place`, the first one has had its place in the queue until now (see `unread`).
        """
        owner = records[0].owner
        if len(records) > 1:
            self.check(owner, num_streams=len(records), has_place=has_place)
            self._check_tokens(owner, [record.claim() for record in records])
        opened: list[Stream] = []
        try:
            for record in records:
                opened.append(self.open(record, has_place=has_place))
                has_place = False
        except Problem:
            for stream in opened:
                stream.cancel()
            raise
        return opened

    def open(self, record: StreamRecord, *, has_place: bool = False) -> Stream:
        """Start a generation, or put it into the queue. Raises Problem.

        With `has_place`, there is room in the queue in any case. If its owner has a limit of tokens
        per minute, the token limit may be lowered.
        """
        owner = record.owner
        self.check(owner, resumable=record.resumable, has_place=has_place)
        claim = record.claim()
        if claim is not None:
            record = record.limited_to(claim.answer)
            self._check_tokens(owner, [claim])
        request = record.request
        timeout = self._timeout_of(record)
        stream = Stream(record, self, self.meter)
        can_start = self._can_start()
        num_bytes = 0
        model = request.model or self.admission.default_model
        if not (can_start and self.admission.would_start(model)):
            num_bytes = stream.num_bytes()
            if not has_place:
                self._check_room(owner, num_bytes, model)
        ticket = Ticket(
            stream.id,
            owner.name,
            request.max_tokens,
            stream.num_counted_tokens,
            num_bytes,
            model,
        )
        self._open[stream.id] = stream
        self._idle.clear()
        self._quotas.opened(owner, resumable=record.resumable)
        if claim is not None:
            now, used = time.monotonic(), stream.num_counted_tokens
            self._quotas.reserve(owner, stream.id, claim, used, now)
        if self._stored is not None and record.resumable:
            self._begin_log(stream, self._stored)
        if self.admission.enter(ticket, time.monotonic(), can_start=can_start):
            if stream.keeper is not None:
                stream.note_submitted()
            try:
                self._dispatcher.submit(request, stream)
            except EngineUnavailable:
                self._take_back(stream)
                raise
        else:
            # An engine lets go of a cancelled request within a step or two.
            starts_soon = self.num_stopping >= self.admission.num_waiting
            if stream.keeper is None or self._stored is None:
                stream.enqueue(starts_soon=starts_soon)
            else:  # its response begins when the store knows it
                enqueue = functools.partial(_enqueue, stream, starts_soon=starts_soon)
                stream.phase = "queued"
                self._stored.when_stored(enqueue)
            self._notices.stream_queued()
            self._dispatcher.watch_engines()
        self.meter.stream_started()
        if timeout:
            self._deadlines.add(stream.id, timeout)
        return stream

    async def share_limits(self, exchange: Exchange) -> None:
        """Exchange counts with the other replicas until cancelled, so that limits hold over all."""
        await keep_exchanging(self._quotas, exchange)

    def token_headers(self, owner: Owner) -> dict[str, str]:
        """Return the headers that say how many tokens an owner with a limit of them has left."""
        return self._quotas.token_headers(owner, time.monotonic())

    async def count_tokens(self, request: Request, owner: Owner = ANYBODY) -> PromptCount:
        """Count the tokens of a prompt without generating anything. Raises Problem."""
        self.check(owner, num_streams=0)
        return await self._counts.count(msgspec.structs.replace(request, max_tokens=0))

    def find(self, stream_id: str, owner: Owner = ANYBODY) -> Stream:
        """Return a resumable stream, running or kept, that `owner` may see. Raises Problem."""
        self._check_may_see(owner, stream_id)
        stream = self._open.get(stream_id) or self.kept.find(stream_id)
        if stream is None:
            ending = self.kept.ending_of(stream_id)
            if ending is not None and ending.was_resumable:
                raise Problem(
                    "history_lost", "This stream has ended, and its events are no longer kept."
                )
        elif stream.resumable:
            return stream
        raise Problem(
            "not_resumable",
            "This stream was not opened as resumable: only its first reader can read it.",
        )

    async def find_anywhere(
        self, stream_id: str, owner: Owner = ANYBODY, *, afresh: bool = False
    ) -> Stream:
        """Return what `find` does, also if the stream is another replica's. Raises Problem.

        Read it at once: otherwise another replica's stream is forgotten again. With `afresh`, it
        has everything that any replica has shown; without, it may be 50 ms behind.
        """
        if afresh:
            await self.until_stored(stream_id)  # another replica may have claimed it a moment ago
        if self.fleet is not None and stream_id not in self._open:
            is_kept = self.kept.find(stream_id) is not None
            if self.memory_is_full and not is_kept and not self.fleet.shows(stream_id):
                raise _memory_full()
            stream = None if is_kept else await self.fleet.find(stream_id, afresh=afresh)
            if stream is not None and stream.resumable and owner.may_see(stream.record.owner):
                return stream
        return self.find(stream_id, owner)

    async def until_stored(self, stream_id: str) -> None:
        """Wait until other replicas can find an open stream of this server. Raises Problem.

        The stream is open no more if another replica has claimed it.
        """
        stream = self._open.get(stream_id)
        if self.fleet is not None and stream is not None:
            await self.fleet.confirm_owner(stream)

    def cancel(self, stream_id: str, owner: Owner = ANYBODY) -> str:
        """Cancel a stream, in any phase, and the other choices of its answer.

        Returns "cancelled", or the finish reason if the stream and its choices had ended before.
        Raises Problem if `owner` may not see the stream, or if it never existed or is forgotten.
        """
        self._check_may_see(owner, stream_id)
        running = self._choices_of(stream_id)
        for stream in running:
            stream.cancel()
        if running:
            return "cancelled"
        ending = self.kept.ending_of(stream_id)
        assert ending is not None
        return ending.reason

    async def cancel_anywhere(self, stream_id: str, owner: Owner = ANYBODY) -> str:
        """Do what `cancel` does, also if the stream is another replica's. Raises Problem.

        A stored stream has its terminal event when this returns, whatever happens then.
        """
        while True:
            if self.fleet is not None and self._owner_of(stream_id) is None:
                elsewhere = await self.fleet.cancel(stream_id, owner)
                if elsewhere is not None:
                    return elsewhere
            stored = [each for each in self._choices_of(stream_id) if each.keeper is not None]
            reason = self.cancel(stream_id, owner)
            stay = [await self._stays_until_its_end(stream) for stream in stored]
            if all(stay):  # else another replica took the stream, and does not know of this
                # An end that was on its way to the store came first.
                return next((_reason_of(each) for each in stored if each.id == stream_id), reason)

    async def _stays_until_its_end(self, stream: Stream) -> bool:
        """Wait for a stream's terminal event; return False if another replica owns it first."""
        moved = self._moves.setdefault(stream.id, asyncio.Event())
        waits = [asyncio.ensure_future(wait) for wait in (stream.end(), moved.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not moved.is_set():
            self._moves.pop(stream.id, None)
        return not moved.is_set()

    def _choices_of(self, stream_id: str) -> list[Stream]:
        """Return the open stream with this id, or all choices of the answer that it names."""
        return [
            each for each in self._open.values() if stream_id in (each.id, each.record.first_id)
        ]

    def lend(self, reader: Reader, owner: Owner) -> None:
        """Let a reader that has no key read for as long as the key of `owner` is accepted."""
        self._lent[reader] = owner
        self._cut_if_unowned(reader, owner)  # the key may just have ended

    def end_unowned(self) -> None:
        """End the streams of owners whose keys are no longer accepted, and what they have lent."""
        for stream in self.open_streams():
            self._refuse_if_unowned(stream)
        for reader, owner in list(self._lent.items()):
            self._cut_if_unowned(reader, owner)

    def _cut_if_unowned(self, reader: Reader, owner: Owner) -> None:
        if not reader.is_done and self._problem_of(owner) is not None:
            reader.cut()

    def _refuse_if_unowned(self, stream: Stream) -> bool:
        owner = stream.record.owner
        problem = self._problem_of(owner) if owner.key_id else None
        if problem is not None:
            stream.refuse(problem)
        return problem is not None

    async def drain(self, timeout: float) -> None:
        """Take no new streams, wait up to `timeout` seconds for the open ones, end the rest.

        Other replicas take the open streams over, if there are any; then this waits for readers.
        """
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                if self.fleet is not None:
                    await self.fleet.hand_over()
                await self._idle.wait()
                while self.fleet is not None and not self.fleet.is_idle.is_set():
                    await self.fleet.is_idle.wait()
                    await self._idle.wait()  # one that was shown may go on here
        except TimeoutError:
            self.shut_down()

    def shut_down(self) -> None:
        """End every open stream now, and take no new ones."""
        self.draining = True
        self._is_shut_down = True
        self._dispatcher.stop()
        if self.fleet is not None and (num_left := self.fleet.leave()):
            log.warning("%d streams wait in the store for another server", num_left)
        for stream in list(self._open.values()):
            stream.give_up(
                "server_shutdown",
                "The server is shutting down before the stream could end. Send the request again.",
            )

    # What streams hold (see memory.Holders).

    def bytes_by_state(self) -> dict[str, int]:
        """Return the memory of the open streams that have a slot, that wait, and of the kept.

        With a store, also that of other replicas' streams, and of what is stored.
        """
        held = {"running": 0, "waiting": 0, "kept": self.kept.num_bytes}
        for stream in self._open.values():
            held["waiting" if stream.phase == "queued" else "running"] += stream.num_bytes()
        return held if self.fleet is None else held | self.fleet.bytes_by_state()

    def drop_kept(self) -> int:
        """Drop one kept stream; return its memory in bytes, 0 if there is none."""
        return self.kept.drop_oldest()

    def cut_followed(self, num_bytes: int) -> tuple[int, int]:
        """Cut readers of other replicas' streams, until these streams held `num_bytes` together.

        Returns the number of streams, and their memory in bytes.
        """
        return (0, 0) if self.fleet is None else self.fleet.cut_followed(num_bytes)

    def cheapest_first(self) -> list[Stream]:
        """Return the open streams in the order in which to end them if the memory is full.

        First those that wait, then those that nobody reads, then the others; the largest first.
        """

        def rank(stream: Stream) -> tuple[bool, bool, int]:
            return (stream.phase != "queued", bool(stream.num_readers), -stream.num_bytes())

        return sorted(self._open.values(), key=rank)

    # The reports of streams (see protocol.StreamObserver).

    def stream_accepted(self, stream: Stream) -> None:
        """Refuse a stream whose prompt is larger than its owner's tokens per minute allow."""
        owner = stream.record.owner
        if owner.limits.tokens_per_minute is not None:
            num_tokens = stream.counted_usage.prompt_tokens
            problem = self._quotas.prompt_counted(owner, stream.id, num_tokens, time.monotonic())
            if problem is not None:
                stream.refuse(problem)

    def stream_ended(self, stream: Stream, *, engine_done: bool) -> None:
        """Free what the stream used; keep it if it may be read again."""
        assert stream.ended is not None
        self._dispatcher.stream_ended(stream, engine_done=engine_done)
        meter_end(stream, stream.ended, self.meter)
        self._leave(stream)
        if stream.resumable and not stream.num_readers:
            log_unread(stream, stream.ended)
        stream.release()
        self.kept.stream_ended(stream)
        self._fill_slots()

    def stream_lost(self, stream: Stream) -> None:
        """Continue a stream whose engine died."""
        self._dispatcher.stream_lost(stream)

    def stream_read(self, stream: Stream) -> None:
        """Stop the timer of a stream that has a reader again."""
        self._lingering.stop(stream)

    def stream_unread(self, stream: Stream) -> None:
        """Cancel a stream without readers: at once, or after it has lingered."""
        if stream.ended is None:
            self._lingering.unread(stream)

    # What other replicas do to streams (see fleet.Host).

    def adopt(self, stream: Stream) -> None:
        """Take in a stream whose log this server owns now."""
        stream.pass_on(self, stream.keeper)
        stream.meter = self.meter
        stream.count_from_here()
        self._open[stream.id] = stream
        self._idle.clear()
        record = stream.record
        self._quotas.opened(record.owner, resumable=record.resumable)
        if record.owner.limits.tokens_per_minute is not None:
            num_left = max(0, record.request.max_tokens - stream.usage.completion_tokens)
            used, now = stream.num_counted_tokens, time.monotonic()
            self._quotas.adopted(record.owner, stream.id, num_left, used, now)
        self.meter.stream_started()
        timeout = self._seconds_of(record)
        if timeout:
            self._deadlines.add(stream.id, max(MIN_TIME_LEFT_S, timeout - stream.age))
        if not stream.num_readers:
            self._lingering.begin(stream)
        for tell in self.on_adopted:
            tell(stream)

    def go_on(self, stream: Stream) -> None:
        """Continue an adopted stream, at the head of the queue."""
        if self._refuse_if_unowned(stream):  # its key was revoked while nobody owned the stream
            return
        if not stream.num_tokens_left:
            stream.finish_at_limit()
            return
        owner, tokens = stream.record.owner.name, stream.num_counted_tokens
        request = stream.record.request
        model = request.model or self.admission.default_model
        ticket = Ticket(stream.id, owner, request.max_tokens, tokens, model=model)
        self.admission.enter_first(ticket, time.monotonic())
        stream.wait_anew()
        self._notices.stream_queued()
        self._dispatcher.watch_engines()
        self._fill_slots()

    def let_go(self, stream: Stream) -> None:
        """Forget a stream that another replica owns now, and stop its engine's work."""
        self._dispatcher.let_go(stream)
        if (moved := self._moves.pop(stream.id, None)) is not None:
            moved.set()
        self._leave(stream)
        if stream.resumable:
            self._quotas.dropped(stream.record.owner, 0)
        meter_move(stream, self.meter)
        self._fill_slots()

    def _begin_log(self, stream: Stream, stored: StoredStreams) -> None:
        assert self.fleet is not None
        stored.begin(stream, self.fleet.lineage_of(stream))

    # How streams get their slots.

    def _fill_slots(self) -> None:
        """Start queued streams while there are free slots."""
        dispatcher = self._dispatcher
        stays = self._is_shut_down or self.is_handing_over
        while not (stays or dispatcher.is_recovering) and self._can_start():
            ticket = self.admission.next(time.monotonic())
            if ticket is None:
                return
            stream = self._open[ticket.id]
            dispatcher.submit_or_wait(stream.continuation(), stream)

    def _can_start(self) -> bool:
        """Return True if an engine has a slot that no request has, not even a cancelled one."""
        num_slots = self.admission.num_slots
        if num_slots and self.admission.num_running + self.num_stopping >= num_slots:
            return False
        return self._dispatcher.has_free_slot

    def _give_up_queued(self) -> None:
        """End the queued streams: no engine comes back for them."""
        for stream_id in self.admission.places():
            self._open[stream_id].give_up("engine_died", NOT_BACK)

    def _take_back(self, stream: Stream) -> None:
        """Undo `open`: there is no engine to start the stream."""
        owner = stream.record.owner
        if owner.limits.tokens_per_minute is not None:
            self._quotas.release(owner, stream.id, time.monotonic())
        self._leave(stream)
        if stream.resumable:
            self._quotas.dropped(owner, 0)
        if self._stored is not None:
            self._stored.drop(stream)

    def _check_room(self, owner: Owner, num_bytes: int, model: str | None = None) -> None:
        if not self.admission.has_room(owner.name, num_bytes, model):
            raise Problem(
                "queue_full",
                "The queue is full. Try again later.",
                headers={"Retry-After": str(self.admission.retry_after())},
            )

    def _check_tokens(self, owner: Owner, claims: Sequence[Claim | None]) -> None:
        """Raise Problem if the owner cannot reserve these tokens now."""
        wanted = [claim for claim in claims if claim is not None]
        if wanted:
            problem = self._quotas.refusal_of_tokens(owner, wanted, time.monotonic())
            if problem is not None:
                raise problem

    def _seconds_of(self, record: StreamRecord) -> float | None:
        """Return the seconds from a stream's admission to its deadline, or None."""
        asked, limit = record.timeout, self._limits.max_timeout
        return min(asked or limit, limit or math.inf) if asked or limit else None

    def seconds_left(self, stream: Stream) -> float | None:
        """Return the seconds until a stream's deadline, more than 0; None if it has none."""
        seconds = self._seconds_of(stream.record)
        return None if seconds is None else max(RESOLUTION_S, seconds - stream.age)

    def _timeout_of(self, record: StreamRecord) -> float | None:
        """Return the seconds that a stream has, or None. Raises Problem if it could not even
        start in that time."""
        timeout = self._seconds_of(record)
        if record.timeout is None or timeout is None:
            return timeout
        model = record.request.model or self.admission.default_model
        wait = self.admission.eta_of_new(record.owner.name, model)
        if wait is not None and wait >= timeout:
            raise Problem(
                "deadline_too_soon",
                f"This request would start in about {wait:.0f} seconds, but its timeout is"
                f" {timeout:g} seconds. Allow it more time, or send it again later.",
                headers={"Retry-After": str(self.admission.retry_after())},
            )
        return timeout

    # Bookkeeping.

    def _check_may_see(self, owner: Owner, stream_id: str) -> None:
        """Raise Problem unless the stream exists for `owner`: other owners' streams do not."""
        found = self._owner_of(stream_id)
        if found is None or not owner.may_see(found):
            raise Problem(
                "stream_not_found", "There is no such stream. It may have ended long ago."
            )

    def _owner_of(self, stream_id: str) -> Owner | None:
        """Return the owner of a stream of this server, also of one that has ended."""
        if stream := self._open.get(stream_id):
            return stream.record.owner
        ending = self.kept.ending_of(stream_id)
        return None if ending is None else ending.owner

    def _leave(self, stream: Stream) -> None:
        """Free what an open stream holds: its slot, its reserved tokens and its timers."""
        self._open.pop(stream.id, None)
        if not self._open:
            self._idle.set()
        self._lingering.stop(stream)
        self._deadlines.discard(stream.id)
        owner, now = stream.record.owner, time.monotonic()
        had_slot = self.admission.leave(stream.id, now)
        if owner.limits.tokens_per_minute is not None:
            self._quotas.settle(owner, stream.id, now, has_begun=had_slot)
        self._quotas.ended(owner)


def _enqueue(stream: Stream, *, starts_soon: bool) -> None:
    if stream.phase == "queued" and not starts_soon:  # it may have started meanwhile
        stream.enqueue()


def _reason_of(stream: Stream) -> str:
    assert stream.ended is not None
    return finish_reason_of(stream.ended)


def draining() -> Problem:
    """Return the problem for requests that arrive while the server shuts down."""
    return Problem(
        "draining",
        "The server is shutting down and takes no new requests.",
        headers={"Retry-After": "5"},
    )


def _memory_full() -> Problem:
    return Problem("memory_full", FULL, headers={"Retry-After": str(MEMORY_RETRY_AFTER_S)})


def new_stream_id() -> str:
    """Return an unguessable id: 128 random bits in 22 URL-safe characters."""
    return secrets.token_urlsafe(16)
