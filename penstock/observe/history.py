"""The last five minutes of a server, second by second, and marks of what happened to it.

In: the meter and the server's present state, once a second. Out: seconds and marks, the oldest
first. Nothing is counted for this: a second is the difference of two readings of numbers that the
server counts anyway. So it costs the same at any load. Not known here: who looks, HTTP.
"""

import asyncio
import collections
import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from penstock.observe.meter import Meter, Tally

NUM_SECONDS = 300
"""How many seconds are kept."""
NUM_MARKS = 100
"""How many marks are kept."""

T = TypeVar("T")
MarkKind = Literal["engine", "takeover", "refusal", "drain", "memory", "store", "upstream"]


class Second(msgspec.Struct, frozen=True):
    """What the server did in one second, which ended at `time` (in seconds since 1970).

    `ttft` are the median and the 95th percentile of the times to the first token, and `itl` of the
    inter-token latencies, in seconds, as of the log; null if there were none. They are read from
    histograms, so each is exact to its bucket. `tokens` were generated, `refused` requests were
    refused. At the end of the second `running` streams had a slot and `waiting` did not.
    """

    time: int
    tokens: int
    running: int
    waiting: int
    refused: int
    ttft: tuple[float, float] | None
    itl: tuple[float, float] | None


class Mark(msgspec.Struct, frozen=True):
    """An event in the server's life: when (seconds since 1970), of what kind, and a sentence."""

    time: int
    kind: MarkKind
    text: str


class Now(msgspec.Struct, frozen=True):
    """The server's present state.

    `tokens`, `restarts` and `takeovers` are totals since its start. `upstreams` has, for each
    model, how many of its upstreams are up, and how many there are.
    """

    tokens: int = 0
    running: int = 0
    waiting: int = 0
    engine: str = "ready"
    restarts: int = 0
    takeovers: int = 0
    draining: bool = False
    memory_is_full: bool = False
    store_up: bool = True
    upstreams: Mapping[str, tuple[int, int]] = msgspec.field(default_factory=dict)


class History:
    """The seconds and marks of one server. `look` returns its present state. Requests that were
    refused with one of the error codes `refusals` are counted and marked.

    The numbers `num_seconds` and `num_marks` count all there ever were: who has seen so many gets
    the others from `seconds_after` and `marks_after`.
    """

    def __init__(self, meter: Meter, look: Callable[[], Now], refusals: Collection[str]) -> None:
        self._refusals = refusals
        self._meter = meter
        self.look = look
        """Returns the server's present state."""
        self._before = look()
        self._counts = _Counts(meter)
        self._seconds: collections.deque[Second] = collections.deque(maxlen=NUM_SECONDS)
        self._marks: collections.deque[Mark] = collections.deque(maxlen=NUM_MARKS)
        self.num_seconds = 0
        self.num_marks = 0

    async def run(self) -> None:
        """Take a reading at the end of every second, until this is cancelled."""
        noted = 0
        while True:
            await asyncio.sleep(1 - time.time() % 1)
            now = round(time.time())
            if now != noted:  # a sleep may end a moment before its second does
                self.note(now)
                noted = now

    def note(self, now: int) -> None:
        """Note the second that ends now."""
        before, state = self._before, self.look()
        counts, new = self._counts, _Counts(self._meter)
        refused = {
            code: number - counts.refused.get(code, 0)
            for code, number in new.refused.items()
            if code in self._refusals
        }
        self._before, self._counts = state, new
        self._seconds.append(
            Second(
                now,
                max(0, state.tokens - before.tokens),
                state.running,
                state.waiting,
                sum(refused.values()),
                _percentiles(self._meter.engine_first_token, counts.first_token),
                _percentiles(self._meter.engine_gap, counts.gap),
            )
        )
        self.num_seconds += 1
        for kind, text in itertools.chain(_changes(before, state), _refusals(refused)):
            self._marks.append(Mark(now, kind, text))
            self.num_marks += 1

    def seconds_after(self, number: int) -> list[Second]:
        """Return the seconds without the first `number`, as far as they are kept."""
        return _last(self._seconds, self.num_seconds - number)

    def marks_after(self, number: int) -> list[Mark]:
        """Return the marks without the first `number`, as far as they are kept."""
        return _last(self._marks, self.num_marks - number)


class _Counts:
    """A copy of the counts of which the next second is the difference."""

    def __init__(self, meter: Meter) -> None:
        self.first_token = list(meter.engine_first_token.counts)
        self.gap = list(meter.engine_gap.counts)
        self.refused = {code: number for (code,), number in meter.num_refused.items()}


def _changes(before: Now, now: Now) -> Iterator[tuple[MarkKind, str]]:
    """Yield what is different now, in sentences."""
    if now.restarts > before.restarts:
        yield "engine", "The engine ended and was started again."
    if now.engine != before.engine:
        yield "engine", f"The engine is {now.engine}."
    if (number := now.takeovers - before.takeovers) > 0:
        yield "takeover", f"{_count(number, 'stream')} of another server continue here."
    if now.draining != before.draining:
        yield "drain", "The server drains: it takes no new requests."
    if now.memory_is_full != before.memory_is_full:
        yield "memory", f"The memory is {'nearly full' if now.memory_is_full else 'free again'}."
    if now.store_up != before.store_up:
        yield "store", f"The store {'answers again' if now.store_up else 'does not answer'}."

    for model, (num_up, num_all) in now.upstreams.items():
        if (num_up, num_all) != before.upstreams.get(model, (num_all, num_all)):
            yield "upstream", f"{num_up} of {num_all} upstreams of {model or 'a model'} are up."


def _refusals(refused: dict[str, int]) -> Iterator[tuple[MarkKind, str]]:
    for code, number in refused.items():
        if number > 0:
            yield "refusal", f"{_count(number, 'request')} refused: {code}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _percentiles(tally: Tally, before: Sequence[int]) -> tuple[float, float] | None:
    """Return the median and the 95th percentile of the values that are new in a histogram."""
    new = [now - then for now, then in zip(tally.counts, before, strict=True)]
    sums = list(itertools.accumulate(new))
    if not sums[-1]:
        return None
    return _at(0.5, sums, tally.bounds), _at(0.95, sums, tally.bounds)


def _at(part: float, sums: Sequence[int], bounds: Sequence[float]) -> float:
    """Return a quantile, by a straight line through its bucket, as Prometheus does."""
    rank = part * sums[-1]
    bucket = min(bisect_left(sums, rank), len(bounds) - 1)  # the last bucket has no upper bound
    low = bounds[bucket - 1] if bucket else 0.0
    below = sums[bucket - 1] if bucket else 0
    in_bucket = sums[bucket] - below
    share = min(1.0, (rank - below) / in_bucket) if in_bucket else 1.0
    return round(low + (bounds[bucket] - low) * share, 6)


def _last(kept: collections.deque[T], number: int) -> list[T]:
    """Return the last `number` items."""
    return list(itertools.islice(kept, max(0, len(kept) - max(0, number)), None))
