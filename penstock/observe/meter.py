"""What happens, as plain numbers: counted where it happens, read when somebody asks.

In: facts, told by plain calls. Out: numbers. Only the event loop's thread tells and reads, so
nothing is locked, and what happens once per token costs a fraction of a microsecond. Not known
here: Prometheus (see `metrics`), HTTP, what a stream is.
"""

import collections
from bisect import bisect_left
from collections.abc import Sequence

# From the fastest small model (0.4 ms a token) to what nobody waits for; densest from 5 to 250 ms,
# where one can still tell fluent from halting.
GAP_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
# Up to a second one waits gladly; beyond, prompts are long or requests wait in line.
FIRST_TOKEN_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0),
)
# Whole answers: a few words of a small model to a thousand tokens of a slow one.
TOTAL_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# The server's own work: tens of microseconds when it is idle. From 20 ms on it is felt.
OWN_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 30.0),
)

Counts = collections.Counter[tuple[str, ...]]
"""How often each combination of labels came."""

# A label has no more values than this; what comes beyond is "other".
MAX_LABEL_VALUES = 64


class Tally:
    """A histogram: how many values fell between each two of its bounds, and their sum.

    `add(value)` counts one value. It is a closure rather than a method, which is what makes a
    token cheap: 0.12 µs where prometheus-client's own takes 1.0.
    """

    __slots__ = ("_sum", "add", "bounds", "counts")

    def __init__(self, bounds: Sequence[float]) -> None:
        counts = [0] * (len(bounds) + 1)
        total = 0.0

        def add(value: float) -> None:
            nonlocal total
            counts[bisect_left(bounds, value)] += 1
            total += value

        self.add = add
        self.bounds = bounds
        self.counts = counts
        """For each bound the values up to it and above the one before; then those beyond."""

        def current_sum() -> float:
            return total

        self._sum = current_sum

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(self.counts)

    @property
    def sum(self) -> float:
        """The values' sum."""
        return self._sum()


class Meter:
    """The numbers of one server. What each means, and its unit, stands in `metrics`."""

    def __init__(self) -> None:
        # Streams, as the engine and the log see them.
        self.num_started = 0
        self.num_ended: Counts = collections.Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.queue_time = Tally(FIRST_TOKEN_S)
        self.prefill_time = Tally(FIRST_TOKEN_S)
        self.engine_first_token = Tally(FIRST_TOKEN_S)
        self.engine_gap = Tally(GAP_S)
        self.engine_total = Tally(TOTAL_S)
        # Responses, as sockets see them.
        self.first_token = Tally(FIRST_TOKEN_S)
        self.gap = Tally(GAP_S)
        self.total = Tally(TOTAL_S)
        self.delivery = Tally(OWN_S)
        self.num_replays = 0
        self.num_events_sent = 0
        # Requests.
        self.num_requests: Counts = collections.Counter()
        self.num_refused: Counts = collections.Counter()
        self.num_resumed: Counts = collections.Counter()
        # The server itself.
        self.abort = Tally(OWN_S)
        self.loop_lag = Tally(OWN_S)

    @property
    def num_sends(self) -> int:
        """Sends that carried events: live, or only what had been logged long ago."""
        return self.delivery.count + self.num_replays

    # Facts of streams. `engine_gap.add` is told of every delta but a stream's first.

    def stream_started(self) -> None:
        """A stream was handed to the engine."""
        self.num_started += 1

    def stream_delayed(self, queue_time: float) -> None:
        """A stream has a slot, or has left the line, after so many seconds."""
        self.queue_time.add(queue_time)

    def first_delta(self, queue_time: float, time_to_first_token: float) -> None:
        """A stream's first delta reached the log."""
        self.prefill_time.add(time_to_first_token - queue_time)
        self.engine_first_token.add(time_to_first_token)

    def stream_ended(
        self,
        cause: str,
        error_code: str,
        prompt_tokens: int,
        completion_tokens: int,
        total_time: float,
    ) -> None:
        """A stream has its terminal event. `error_code`: why, where it is "error" or "refused"."""
        self.num_ended[_bounded(self.num_ended, (cause, error_code), (cause, "other"))] += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if cause in ("stop", "length"):  # how long the others took says nothing of the server
            self.engine_total.add(total_time)

    # Facts of requests.

    def request_ended(self, route: str, method: str, status: int) -> None:
        """An HTTP request has had its response, or its client has gone."""
        self.num_requests[route, method, str(status)] += 1

    def refused(self, code: str) -> None:
        """A request got a problem instead of what it asked for."""
        self.num_refused[_bounded(self.num_refused, (code,), ("other",))] += 1

    def resumed(self, phase: str) -> None:
        """A stream that is "running" or has "ended" is read again."""
        self.num_resumed[phase,] += 1

    def answered(self, total_time: float) -> None:
        """A request's whole answer was taken, so many seconds after its admission."""
        self.total.add(total_time)


class Delivery:
    """One response's events on their way out: the socket's side of the figures.

    `began` is when its stream was admitted, on the monotonic clock, or 0.0 for a reader that came
    later.
    """

    __slots__ = ("_add_delivery", "_add_gap", "_began", "_last", "_meter")

    def __init__(self, meter: Meter, began: float) -> None:
        self._meter = meter
        self._add_delivery = meter.delivery.add
        self._add_gap = meter.gap.add
        self._began = began
        self._last = 0.0

    def taken(self, num_events: int, has_end: bool, logged_at: float, now: float) -> None:
        """The send that carried these was taken; `has_end`: one of them is the terminal event.

        `logged_at` is when the first of them came into the log; 0.0 where they had been there
        before the reader, so that their delay says nothing.
        """
        self._meter.num_events_sent += num_events
        if not logged_at:
            self._meter.num_replays += 1
            return
        self._add_delivery(now - logged_at)
        if num_events > has_end:  # there are deltas
            if self._last:
                self._add_gap(now - self._last)
            elif self._began:
                self._meter.first_token.add(now - self._began)
            self._last = now


def _bounded(
    counts: Counts, labels: tuple[str, ...], otherwise: tuple[str, ...]
) -> tuple[str, ...]:
    """`labels`, or `otherwise` where there are too many already."""
    return labels if labels in counts or len(counts) < MAX_LABEL_VALUES else otherwise
