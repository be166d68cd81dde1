"""Plain numbers that count what the server does.

In: method calls from the place where something happens. Out: numbers, read at a scrape. Only the
event loop's thread writes and reads them, so they need no locks and counting a token takes a
fraction of a microsecond. Not known here: Prometheus (see `metrics`), HTTP, what a stream is.
"""

import collections
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

# Histogram bounds, in seconds.

# From a fast small model (0.4 ms per token) up to 30 s. Densest from 5 to 250 ms, where text
# changes from fluent to halting.
GAP_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
# Up to 1 s feels immediate. Longer times come from long prompts or from waiting in the queue.
FIRST_TOKEN_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0),
)
# Whole answers: from a few words of a small model to a thousand tokens of a slow model.
TOTAL_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# The server's own work: tens of microseconds on an idle server. Users notice 20 ms or more.
OWN_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 30.0),
)

Counts = collections.Counter[tuple[str, ...]]
"""A count for each combination of label values."""

# Further label values are counted as "other".
MAX_LABEL_VALUES = 64
OTHER = "other"


class TokenCounts(Protocol):
    """Token counts of a stream (see `events.Usage`)."""

    @property
    def prompt_tokens(self) -> int:
        """The prompt's tokens."""

    @property
    def completion_tokens(self) -> int:
        """The answer's tokens."""


@dataclass(slots=True)
class KeyUsage:
    """What the requests of one API key have used. The tokens are those of ended streams."""

    num_requests: int = 0
    num_refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, tokens: TokenCounts) -> None:
        """Count the tokens of a stream."""
        self.prompt_tokens += tokens.prompt_tokens
        self.completion_tokens += tokens.completion_tokens


class Tally:
    """A histogram: the number of values in each bucket, and the sum of the values.

    `add(value)` counts a value. It is a closure and not a method because a closure is faster: it
    takes 0.12 µs, and prometheus-client's histogram takes 1.0 µs.
    """

    __slots__ = ("_sum", "add", "add_to_sum", "bounds", "counts")

    def __init__(self, bounds: Sequence[float]) -> None:
        counts = [0] * (len(bounds) + 1)
        total = 0.0

        def add(value: float) -> None:
            nonlocal total
            counts[bisect_left(bounds, value)] += 1
            total += value

        def add_to_sum(values: float) -> None:
            nonlocal total
            total += values

        self.add = add
        self.add_to_sum = add_to_sum
        """Adds the sum of values that a loop has counted in `counts` itself."""
        self.bounds = bounds
        self.counts = counts
        """The number of values in each bucket: a bucket for each bound, then one for the rest."""

        def current_sum() -> float:
            return total

        self._sum = current_sum

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    @property
    def sum(self) -> float:
        """The sum of the values."""
        return self._sum()


class Meter:
    """The numbers of one server. `metrics` gives the meaning and the unit of each number."""

    def __init__(self) -> None:
        # Streams, measured when events reach the log.
        self.num_started = 0
        self.num_ended: Counts = collections.Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.queue_time = Tally(FIRST_TOKEN_S)
        self.prefill_time = Tally(FIRST_TOKEN_S)
        self.engine_first_token = Tally(FIRST_TOKEN_S)
        self.engine_gap = Tally(GAP_S)
        self.engine_total = Tally(TOTAL_S)
        # Responses, measured when sends complete.
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
        self.usage_by_key: dict[str, KeyUsage] = {}
        # The server itself.
        self.abort = Tally(OWN_S)
        self.store_ack = Tally(OWN_S)
        self.loop_lag = Tally(OWN_S)

    @property
    def num_sends(self) -> int:
        """The number of sends that carried events, live or replayed."""
        return self.delivery.count + self.num_replays

    # Streams. `Stream` also calls `engine_gap.add` for every delta except the first.

    def stream_started(self) -> None:
        """Count an admitted stream."""
        self.num_started += 1

    def stream_delayed(self, queue_time: float) -> None:
        """Count the seconds until a stream got a slot or left the queue without a slot."""
        self.queue_time.add(queue_time)

    def first_delta(self, queue_time: float, time_to_first_token: float) -> None:
        """Count the first delta of a stream. Times are in seconds, from admission."""
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
        """Count an ended stream.

        `error_code` is "" unless `cause` is "error" or "refused". `total_time` is in seconds, from
        admission to the terminal event.
        """
        self.num_ended[_bounded(self.num_ended, (cause, error_code), (cause, OTHER))] += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if cause in ("stop", "length"):  # the length of a cut-short answer says nothing useful
            self.engine_total.add(total_time)

    def stream_moved(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count a stream that goes on in another replica, with its tokens until then."""
        self.num_ended["moved", ""] += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    # Requests.

    def request_ended(self, route: str, method: str, status: int) -> None:
        """Count a finished HTTP request. `status` is 0 if the client left before the response."""
        self.num_requests[route, method, str(status)] += 1

    def refused(self, code: str) -> None:
        """Count a request that was answered with an error, by error code."""
        self.num_refused[_bounded(self.num_refused, (code,), (OTHER,))] += 1

    def usage_of(self, key: str) -> KeyUsage:
        """Return the usage of a key by its configured name; "other" if there are too many names."""
        return self.usage_by_key.setdefault(self._label_of(key), KeyUsage())

    def usage_now(self, running: Iterable[tuple[str, TokenCounts]]) -> dict[str, KeyUsage]:
        """Return the usage of each key with the tokens of streams that have not ended."""
        usages = {key: replace(usage) for key, usage in self.usage_by_key.items()}
        for key, tokens in running:
            self.usage_of(key)  # a name keeps its place among the bounded names
            usages.setdefault(self._label_of(key), KeyUsage()).add(tokens)
        return usages

    def _label_of(self, key: str) -> str:
        is_known = key in self.usage_by_key or len(self.usage_by_key) < MAX_LABEL_VALUES
        return key if is_known else OTHER

    def resumed(self, phase: str) -> None:
        """Count a stream that a client reads again. `phase` is "running" or "ended"."""
        self.num_resumed[phase,] += 1

    def answered(self, total_time: float) -> None:
        """Count a response sent to its end, `total_time` seconds after admission."""
        self.total.add(total_time)


class Delivery:
    """Measures the sends of one response.

    `began` is the time of the stream's admission on the monotonic clock, or 0.0 for a reader that
    joined later.
    """

    __slots__ = ("_add_delivery", "_add_gap", "_began", "_meter", "last")

    def __init__(self, meter: Meter, began: float) -> None:
        self._meter = meter
        self._add_delivery = meter.delivery.add
        self._add_gap = meter.gap.add
        self._began = began
        self.last = 0.0
        """When the last send with deltas was taken, on the monotonic clock; 0.0 before."""

    def taken(self, num_events: int, has_end: bool, logged_at: float, now: float) -> None:
        """Count a completed send of `num_events` events.

        `has_end` is true if the terminal event is among the events. `logged_at` is the time when
        the first of the events reached the log, or 0.0 if the events are older than the reader: the
        delay of replayed events is not the server's.
        """
        self._meter.num_events_sent += num_events
        if not logged_at:
            self._meter.num_replays += 1
            return
        self._add_delivery(now - logged_at)
        if num_events > has_end:  # the send carried deltas
            if self.last:
                self._add_gap(now - self.last)
            elif self._began:
                self._meter.first_token.add(now - self._began)
            self.last = now


def _bounded(
    counts: Counts, labels: tuple[str, ...], otherwise: tuple[str, ...]
) -> tuple[str, ...]:
    """Return `labels`, or `otherwise` if `counts` is full and does not have `labels`."""
    return labels if labels in counts or len(counts) < MAX_LABEL_VALUES else otherwise
