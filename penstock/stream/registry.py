"""All streams of a server: open one, find one, cancel one, drain them.

In: valid requests, and what streams say of themselves. Out: streams, handed to the engine when it
is their turn (see `admission`). Here is decided what becomes of a stream that nobody reads, and of
one that has ended:

- One that is not resumable is cancelled with its last reader.
- A resumable one goes on for `linger` seconds; if nobody reads it then, it is cancelled.
- A resumable one that has ended is kept for `retain` seconds, as long as all that are kept take no
  more than `retain_bytes`; the oldest goes first.
- Of one that is kept no more, how it ended is known, for a late `cancel` or `find`.

Streams that lost their engine keep their slots, and go on before any other begins.

Not known here: HTTP, a concrete engine.
"""

import asyncio
import collections
import functools
import math
import secrets
import time
from dataclasses import dataclass
from typing import Protocol

from penstock.errors import EngineUnavailable, Problem, kind_of
from penstock.events import Failure, TerminalEvent
from penstock.observe.meter import Meter
from penstock.request import Request, num_bytes_of
from penstock.stream.admission import Admission, Place, Ticket
from penstock.stream.quotas import ANYBODY, Owner, Quotas
from penstock.stream.recovery import NOT_BACK, Recovery
from penstock.stream.stream import Stream

MAX_ENDED_KNOWN = 10_000
# How soon one that has to wait is told its place, and how often all are looked at.
TELL_FIRST_S = 0.1
TELL_EVERY_S = 1.0
# One that will wait for long is not told of each change: again after this part of its wait.
TELL_AGAIN_AFTER = 1 / 8


class Submits(Protocol):
    """The part of an engine that streams need."""

    def submit(self, request: Request, sink: Stream) -> None:
        """Hand over a request; raises Unavailable while there is no engine."""

    def cancel(self, request_id: str) -> None:
        """Stop a request."""

    async def until_ready(self) -> None:
        """Wait until requests can be submitted."""


@dataclass(frozen=True)
class Limits:
    """For how long, in seconds, and in how many bytes, streams are kept (see above).

    `restart_timeout`: how long running streams wait for an engine that died. `max_timeout`: how
    long a stream may take, from its admission to its end, if it asks for no less; 0 is no limit.
    """

    linger: float = 60.0
    retain: float = 300.0
    retain_bytes: int = 256 * 1024 * 1024
    restart_timeout: float = 300.0
    max_timeout: float = 0.0


@dataclass(frozen=True)
class _Ended:
    """What is left of a stream."""

    reason: str
    was_resumable: bool
    belongs_to: Owner


class Streams:
    """The streams of one server."""

    def __init__(
        self,
        engine: Submits,
        limits: Limits | None = None,
        meter: Meter | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.meter = meter or Meter()
        self.admission = admission or Admission()
        self._engine = engine
        self._limits = limits or Limits()
        self._recovery = Recovery(
            engine, self._limits.restart_timeout, self._give_up_waiting, self._fill_slots
        )
        self._quotas = Quotas()
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._line = _Telling(self)
        self._open: dict[str, Stream] = {}
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._kept: dict[str, _Kept] = {}
        self._kept_bytes = 0
        self._ended: collections.OrderedDict[str, _Ended] = collections.OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self._is_shut_down = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_kept(self) -> int:
        """Streams that have ended and can still be read."""
        return len(self._kept)

    @property
    def num_kept_bytes(self) -> int:
        """About how much memory they take."""
        return self._kept_bytes

    def open_streams(self) -> list[Stream]:
        """Those that have not ended."""
        return list(self._open.values())

    @property
    def is_recovering(self) -> bool:
        """Streams wait to go on after the engine's death."""
        return self._recovery.is_under_way

    def check(
        self, owner: Owner = ANYBODY, *, resumable: bool = False, num_streams: int = 1
    ) -> None:
        """Raises Problem where `open` would, called so often, whatever is asked for; BadRequest
        where that is more than the owner may ever have. It costs next to nothing, so ask before
        anything else is done for a request."""
        if self.draining:
            raise draining()
        if self.is_recovering:
            raise Problem(
                "engine_down",
                "The engine stopped; those that it served go on first. Try again in a moment.",
                headers={"Retry-After": "1"},
            )
        self._check_room(owner, 0)
        num_under_way = 0
        if owner.limits.tokens_per_minute is not None:
            theirs = [each for each in self._open.values() if each.belongs_to.name == owner.name]
            num_under_way = sum(stream.usage.total_tokens for stream in theirs)
        refusal = self._quotas.refusal(
            owner,
            resumable=resumable,
            num_streams=num_streams,
            num_under_way=num_under_way,
            now=time.monotonic(),
        )
        if refusal is not None:
            raise refusal

    def open(
        self,
        request: Request,
        *,
        resumable: bool = False,
        opened_as: object = None,
        owner: Owner = ANYBODY,
        timeout: float | None = None,
        first: Stream | None = None,
    ) -> Stream:
        """Begin a generation (see `Stream`), or have it wait for its turn. Raises Problem.

        `timeout`: seconds after which the stream is ended, wherever it is. `first`: of several that
        are one answer, the one after which all are named: who cancels it cancels this one, too.
        """
        self.check(owner, resumable=resumable)
        num_bytes = num_bytes_of(request)
        self._check_room(owner, num_bytes)
        timeout = self._timeout_of(timeout, owner)
        stream = Stream(
            request,
            self,
            self.meter,
            resumable=resumable,
            opened_as=opened_as,
            belongs_to=owner,
            first_id=None if first is None else first.id,
        )
        ticket = Ticket(
            stream.id,
            owner.name,
            request.max_tokens,
            lambda: stream.usage.total_tokens,
            num_bytes,
        )
        self._open[stream.id] = stream
        self._idle.clear()
        self._quotas.opened(owner, resumable=resumable)
        if self.admission.enter(ticket, time.monotonic()):
            try:
                self._engine.submit(request, stream)
            except EngineUnavailable:
                self._take_back(stream)
                raise
        else:
            stream.queue()
            self._line.has_grown()
        self.meter.stream_started()
        if timeout:
            loop = asyncio.get_running_loop()
            self._deadlines[stream.id] = loop.call_later(timeout, stream.expire)
        return stream

    def waiting(self, stream_id: str) -> Stream:
        """An open stream."""
        return self._open[stream_id]

    def find(self, stream_id: str, owner: Owner = ANYBODY) -> Stream:
        """A resumable stream, running or kept, that `owner` may see. Raises Problem, or BadRequest
        (409, 410)."""
        self._check_may_see(owner, stream_id)
        if stream := self._open.get(stream_id):
            if stream.resumable:
                return stream
            raise _not_resumable()
        if kept := self._kept.get(stream_id):
            return kept.stream
        if self._ended[stream_id].was_resumable:
            raise _history_lost()
        raise _not_resumable()

    def cancel(self, stream_id: str, owner: Owner = ANYBODY) -> str:
        """Cancel a stream that `owner` may end, in any phase, any number of times.

        With it end those that are one answer with it, though it may have ended itself. Returns how
        it ended: "cancelled", or the reason for which all had ended before. Raises Problem for an
        id that was never given, or so long ago that it is forgotten.
        """
        self._check_may_see(owner, stream_id)
        running = [each for each in self._open.values() if stream_id in (each.id, each.first_id)]
        for stream in running:
            stream.cancel()
        if running:
            return "cancelled"
        ended = self._end_of(stream_id)
        assert ended is not None
        return ended.reason

    def _check_may_see(self, owner: Owner, stream_id: str) -> None:
        """Raises Problem: to an owner, what is another's is what there never was."""
        known = self._open.get(stream_id) or self._end_of(stream_id)
        if known is None or not owner.may_see(known.belongs_to):
            raise Problem(
                "stream_not_found", "There is no such stream. It may have ended long ago."
            )

    def _end_of(self, stream_id: str) -> _Ended | None:
        """What is known of one that has ended; of one that is kept, however long ago it was."""
        kept = self._kept.get(stream_id)
        return kept.ended if kept is not None else self._ended.get(stream_id)

    async def drain(self, timeout: float) -> None:
        """Take no new streams, wait up to `timeout` seconds for the open ones, end the rest."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            self.shut_down()

    def shut_down(self) -> None:
        """End every open stream now, and take no new ones."""
        self.draining = True
        self._is_shut_down = True
        self._recovery.stop()
        for stream in list(self._open.values()):
            stream.give_up(
                "server_shutdown",
                "The server is shutting down before the stream could end. Send the request again.",
            )

    # What streams say of themselves (see stream.StreamObserver).

    def stream_ended(self, stream: Stream, *, engine_done: bool) -> None:
        """Keep it, if it may be read again."""
        if not engine_done:
            self._engine.cancel(stream.id)
        self._forget(stream)
        self._stop_lingering(stream)
        if timer := self._deadlines.pop(stream.id, None):
            timer.cancel()
        assert stream.ended is not None
        now = time.monotonic()
        self._tell_meter(stream, stream.ended)
        self._quotas.ended(stream.belongs_to, stream.usage.total_tokens, now)
        ended = _Ended(ended_as(stream.ended), stream.resumable, stream.belongs_to)
        self._ended[stream.id] = ended
        if len(self._ended) > MAX_ENDED_KNOWN:
            self._ended.popitem(last=False)
        if stream.resumable and stream.was_accepted.result() is None:
            self._keep(stream, ended)
        elif stream.resumable:
            self._quotas.dropped(stream.belongs_to, 0)
        self.admission.leave(stream.id, now)
        self._fill_slots()

    def stream_lost(self, stream: Stream) -> None:
        """Have it go on."""
        self._recovery.take(stream)

    def stream_read(self, stream: Stream) -> None:
        """It lingers no more."""
        self._stop_lingering(stream)

    def stream_unread(self, stream: Stream) -> None:
        """Cancel it, now or after lingering."""
        if stream.ended is not None:
            return
        if stream.resumable:
            loop = asyncio.get_running_loop()
            cancel = functools.partial(stream.cancel, client_gone=True)
            self._lingering[stream.id] = loop.call_later(self._limits.linger, cancel)
        else:
            stream.cancel(client_gone=True)

    def _take_back(self, stream: Stream) -> None:
        """It has never been: there is no engine to begin it."""
        now = time.monotonic()
        self.admission.leave(stream.id, now)
        self._quotas.ended(stream.belongs_to, 0, now)
        if stream.resumable:
            self._quotas.dropped(stream.belongs_to, 0)
        self._forget(stream)

    def _check_room(self, owner: Owner, num_bytes: int) -> None:
        if not self.admission.has_room(owner.name, num_bytes):
            raise Problem(
                "queue_full",
                "Too many requests are waiting already. Try again later.",
                headers={"Retry-After": str(self.admission.retry_after())},
            )

    def _timeout_of(self, asked: float | None, owner: Owner) -> float | None:
        """The time that a stream has. Raises Problem where it would not even begin in it."""
        limit = self._limits.max_timeout
        timeout = min(asked or limit, limit or math.inf) if asked or limit else None
        if asked is None or timeout is None:
            return timeout
        wait = self.admission.eta_of_new(owner.name)
        if wait is not None and wait >= timeout:
            raise Problem(
                "deadline_too_soon",
                f"It would be about {wait:.0f} seconds until this request begins, and it gives"
                f" itself {timeout:g}. Allow it more time, or send it again later.",
                headers={"Retry-After": str(self.admission.retry_after())},
            )
        return timeout

    def _fill_slots(self) -> None:
        """Begin those whose turn it is."""
        while not (self._is_shut_down or self.is_recovering):
            ticket = self.admission.next(time.monotonic())
            if ticket is None:
                return
            stream = self._open[ticket.id]
            try:
                self._engine.submit(stream.continuation(), stream)
            except EngineUnavailable:
                # It has just died. They wait for the next one together with those it had.
                self._recovery.take(stream)

    def _give_up_waiting(self) -> None:
        """The engine does not come back: those in the line wait for nothing."""
        for stream_id in self.admission.places():
            self._open[stream_id].give_up("engine_died", NOT_BACK)

    def _tell_meter(self, stream: Stream, end: TerminalEvent) -> None:
        cause, error_code = ended_as(end), ""
        if stream.client_gone:
            cause = "client_gone"
        elif isinstance(end, Failure):
            error_code = end.code
            if kind_of(end.code).status < 500:  # no fault of the server's: nobody to be woken
                cause = "refused"
        self.meter.stream_ended(
            cause=cause,
            error_code=error_code,
            prompt_tokens=end.usage.prompt_tokens,
            completion_tokens=end.usage.completion_tokens,
            total_time=end.timings.total_time,
        )

    def _forget(self, stream: Stream) -> None:
        self._open.pop(stream.id, None)
        if not self._open:
            self._idle.set()

    def _stop_lingering(self, stream: Stream) -> None:
        if timer := self._lingering.pop(stream.id, None):
            timer.cancel()

    def _keep(self, stream: Stream, ended: _Ended) -> None:
        stream.release()
        num_bytes = stream.log.num_bytes()
        expiry = asyncio.get_running_loop().call_later(self._limits.retain, self._drop, stream.id)
        self._kept[stream.id] = _Kept(stream, ended, num_bytes, expiry)
        self._kept_bytes += num_bytes
        owner = ended.belongs_to
        self._quotas.kept(owner, num_bytes)
        while self._quotas.keeps_too_much(owner):
            # By name: what it may have can change while it is kept.
            theirs = (i for i, k in self._kept.items() if k.ended.belongs_to.name == owner.name)
            self._drop(next(theirs))
        while self._kept_bytes > self._limits.retain_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, stream_id: str) -> None:
        kept = self._kept.pop(stream_id)
        kept.expiry.cancel()
        self._kept_bytes -= kept.num_bytes
        self._quotas.dropped(kept.ended.belongs_to, kept.num_bytes)


class _Telling:
    """Tells those that wait in line where they stand, while there are any."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._timer: asyncio.TimerHandle | None = None
        self._told_at: dict[str, float] = {}

    def has_grown(self) -> None:
        """A stream waits: tell it soon."""
        loop = asyncio.get_running_loop()
        soon = loop.time() + TELL_FIRST_S
        if self._timer is None or self._timer.when() > soon:
            self._stop()
            self._timer = loop.call_at(soon, self._tell)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self._timer = None
        now = time.monotonic()
        places = self._streams.admission.places()
        told_at = self._told_at
        self._told_at = {}
        for stream_id, place in places.items():
            stream = self._streams.waiting(stream_id)
            told = told_at.get(stream_id, -math.inf)
            if _is_worth_telling(place, stream.place, now - told):
                stream.tell(place)
                told = now
            self._told_at[stream_id] = told
        if places:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(TELL_EVERY_S, self._tell)


def _is_worth_telling(place: Place, before: Place | None, told_ago: float) -> bool:
    if before is None:
        return True
    has_changed = place.position != before.position
    return has_changed and told_ago >= max(TELL_EVERY_S / 2, (place.eta or 0.0) * TELL_AGAIN_AFTER)


@dataclass(frozen=True)
class _Kept:
    """A stream that has ended and can still be read."""

    stream: Stream
    ended: _Ended
    num_bytes: int
    expiry: asyncio.TimerHandle


def draining() -> Problem:
    """What is told to those that come while the server ends."""
    return Problem(
        "draining",
        "The server is shutting down and takes no new requests.",
        headers={"Retry-After": "5"},
    )


def _not_resumable() -> Problem:
    return Problem(
        "not_resumable",
        "This stream was not opened as resumable: only its first reader can read it.",
    )


def _history_lost() -> Problem:
    return Problem("history_lost", "This stream has ended, and its events are no longer kept.")


def ended_as(event: TerminalEvent) -> str:
    """The finish reason as clients are told of it: of a failure it is "error"."""
    return "error" if isinstance(event, Failure) else event.reason


def new_stream_id() -> str:
    """A name that cannot be guessed: 128 random bits in 22 URL-safe characters."""
    return secrets.token_urlsafe(16)
