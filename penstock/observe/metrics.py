"""Every metric once: its name, its kind, what it answers, and where its value is read.

In: the plain numbers of `meter`, and `Levels` that are read when Prometheus asks. Out: families of
samples. docs/metrics.md shows this table (tests/observe/test_metrics.py compares them). Names
follow Prometheus' conventions: base units, `_total` for what only grows. No label holds anything
that a client chose.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from penstock.observe.meter import Meter, Tally


@dataclass(frozen=True)
class Levels:
    """What can be looked at when somebody asks. Tokens are those of streams that have not ended."""

    version: str
    engine: str
    model: str
    running: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int
    kept: int
    kept_bytes: int
    readers: int
    lag: int
    greatest_lag: int
    blocked: int
    stalled: int
    slots: int
    engine_up: bool
    engine_restarts: int
    draining: bool


Numbers = float | Mapping[tuple[str, ...], float]
"""One number, or one for each combination of labels."""


@dataclass(frozen=True)
class Distribution:
    """A histogram. `read` gives its tally."""

    name: str
    answers: str
    read: Callable[[Meter], Tally]
    kind: Literal["histogram"] = "histogram"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Count:
    """A counter: it only grows. Its name ends in `_total`."""

    name: str
    answers: str
    read: Callable[[Meter, Levels], Numbers]
    labels: tuple[str, ...] = ()
    kind: Literal["counter"] = "counter"


@dataclass(frozen=True)
class Level:
    """A gauge: it goes up and down."""

    name: str
    answers: str
    read: Callable[[Levels], Numbers]
    labels: tuple[str, ...] = ()
    kind: Literal["gauge"] = "gauge"


METRICS: tuple[Distribution | Count | Level, ...] = (
    # What clients feel: measured when the server had taken the send that carried the text.
    Distribution(
        "penstock_time_to_first_token_seconds",
        "How long do clients wait? From a request's admission until the send that carried its "
        "first delta was taken.",
        lambda meter: meter.first_token,
    ),
    Distribution(
        "penstock_inter_token_latency_seconds",
        "How fluently does text arrive? Between two sends with new deltas; a send is one gap, "
        "however many deltas and tokens it carried.",
        lambda meter: meter.gap,
    ),
    Distribution(
        "penstock_e2e_latency_seconds",
        "How long does a whole answer take? From admission until the last send was taken; only "
        "answers that ended with stop or length.",
        lambda meter: meter.total,
    ),
    # What the engine did: measured when its deltas reached the log.
    Distribution(
        "penstock_engine_time_to_first_token_seconds",
        "The same wait without the server's share: until the first delta reached the log.",
        lambda meter: meter.engine_first_token,
    ),
    Distribution(
        "penstock_engine_inter_token_latency_seconds",
        "How evenly does the engine generate? Between two deltas as they reach the log; a delta of "
        "several tokens is one gap.",
        lambda meter: meter.engine_gap,
    ),
    Distribution(
        "penstock_engine_e2e_latency_seconds",
        "How long does the engine take? From admission until the terminal event was logged; only "
        "stop and length.",
        lambda meter: meter.engine_total,
    ),
    Distribution(
        "penstock_queue_time_seconds",
        "How long do requests wait for a slot? Those that leave the line count with what they "
        "waited.",
        lambda meter: meter.queue_time,
    ),
    Distribution(
        "penstock_prefill_time_seconds",
        "How long does reading the prompt take? From a slot to the first delta in the log.",
        lambda meter: meter.prefill_time,
    ),
    # The server's own share, and its clients'.
    Distribution(
        "penstock_delivery_seconds",
        "What does the server add? From an event's reaching the log until the send that carried "
        "it was taken; the oldest event of each send.",
        lambda meter: meter.delivery,
    ),
    Distribution(
        "penstock_event_loop_lag_seconds",
        "Is the server's loop held up? How much later than asked a timer of 0.1 s fires.",
        lambda meter: meter.loop_lag,
    ),
    Distribution(
        "penstock_abort_seconds",
        "How soon is the engine free of what nobody wants? From the server's learning that a "
        "stream is to stop (its client has gone, a cancel, a stop string) to the engine's word "
        "that it has stopped the request.",
        lambda meter: meter.abort,
    ),
    Count(
        "penstock_sends_total",
        "Writes to clients that carried events. Events by sends is how many events merge.",
        lambda meter, _: meter.num_sends,
    ),
    Count(
        "penstock_events_sent_total",
        "Events (deltas and terminal events) that clients were sent.",
        lambda meter, _: meter.num_events_sent,
    ),
    Level(
        "penstock_readers",
        "Connections that are being sent a stream.",
        lambda levels: levels.readers,
    ),
    Level(
        "penstock_reader_lag_events",
        "Events in logs that no send has taken yet, over all readers.",
        lambda levels: levels.lag,
    ),
    Level(
        "penstock_reader_lag_max_events",
        "The same of the reader that is furthest behind.",
        lambda levels: levels.greatest_lag,
    ),
    Level(
        "penstock_readers_blocked",
        "Readers whose clients have not taken what was sent for a second or longer.",
        lambda levels: levels.blocked,
    ),
    Count(
        "penstock_readers_stalled_total",
        "Readers dropped because their clients took nothing for --stall-timeout.",
        lambda _, levels: levels.stalled,
    ),
    # Streams: started = ended + running + waiting, always.
    Count(
        "penstock_streams_started_total",
        "Streams admitted: they have a slot, or wait for one.",
        lambda meter, _: meter.num_started,
    ),
    Count(
        "penstock_streams_ended_total",
        "Streams that ended, by cause (stop, length, cancelled, client_gone, deadline, error, "
        "refused) and, for the last two, by code.",
        lambda meter, _: meter.num_ended,
        ("cause", "code"),
    ),
    Level(
        "penstock_streams_running",
        "Streams that have a slot.",
        lambda levels: levels.running,
    ),
    Level(
        "penstock_streams_waiting",
        "Streams that wait for one.",
        lambda levels: levels.waiting,
    ),
    Level(
        "penstock_streams_kept",
        "Streams that have ended and can still be read.",
        lambda levels: levels.kept,
    ),
    Level(
        "penstock_streams_kept_bytes",
        "About how much memory those take.",
        lambda levels: levels.kept_bytes,
    ),
    Count(
        "penstock_resumes_total",
        "Streams read again by GET /streams/{id}, while running or after they had ended.",
        lambda meter, _: meter.num_resumed,
        ("phase",),
    ),
    Count(
        "penstock_prompt_tokens_total",
        "Tokens of prompts that the engine took.",
        lambda meter, levels: meter.prompt_tokens + levels.prompt_tokens,
    ),
    Count(
        "penstock_completion_tokens_total",
        "Tokens that the engine generated.",
        lambda meter, levels: meter.completion_tokens + levels.completion_tokens,
    ),
    # Requests.
    Count(
        "penstock_http_requests_total",
        "HTTP requests that have ended; the status is 0 where the client left before there was "
        "one.",
        lambda meter, _: meter.num_requests,
        ("route", "method", "status"),
    ),
    Count(
        "penstock_refusals_total",
        "Requests that got a problem instead of what they asked for, by the problem's code.",
        lambda meter, _: meter.num_refused,
        ("reason",),
    ),
    # The engine and the server.
    Level(
        "penstock_engine_up",
        "1 if requests can be submitted to the engine.",
        lambda levels: levels.engine_up,
    ),
    Count(
        "penstock_engine_restarts_total",
        "Times that the engine's process died and was started again.",
        lambda _, levels: levels.engine_restarts,
    ),
    Level(
        "penstock_engine_slots",
        "Requests that run at once; 0 where there is no bound.",
        lambda levels: levels.slots,
    ),
    Level(
        "penstock_draining",
        "1 if the server is shutting down and takes no new requests.",
        lambda levels: levels.draining,
    ),
    Level(
        "penstock_build_info",
        "1, with what is served in the labels.",
        lambda levels: {(levels.version, levels.engine, levels.model): 1},
        ("version", "engine", "model"),
    ),
)


class Metrics(Collector):
    """Makes samples of one server's numbers. `read_levels` is called at each scrape."""

    def __init__(self, meter: Meter, read_levels: Callable[[], Levels]) -> None:
        self._meter = meter
        self._read_levels = read_levels
        # A request that is continued after the engine's death takes back a token or two.
        self._highest: dict[str, float] = {}

    def collect(self) -> Iterator[Family]:
        """The families, as prometheus-client asks for them."""
        levels = self._read_levels()
        for metric in METRICS:
            if isinstance(metric, Distribution):
                yield _histogram(metric, metric.read(self._meter))
            elif isinstance(metric, Count):
                counter = CounterMetricFamily(metric.name, metric.answers, labels=metric.labels)
                for labels, number in _samples(metric.read(self._meter, levels)):
                    counter.add_metric(labels, self._not_less(metric.name, labels, number))
                yield counter
            else:
                gauge = GaugeMetricFamily(metric.name, metric.answers, labels=metric.labels)
                for labels, number in _samples(metric.read(levels)):
                    gauge.add_metric(labels, number)
                yield gauge

    def describe(self) -> Iterator[Family]:
        """Nothing: so that registering does not read."""
        return iter(())

    def _not_less(self, name: str, labels: tuple[str, ...], number: float) -> float:
        """To Prometheus a counter that goes down has begun anew."""
        if labels:
            return number
        highest = self._highest[name] = max(number, self._highest.get(name, 0.0))
        return highest


def _samples(numbers: Numbers) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(numbers, Mapping):
        yield from numbers.items()
    else:
        yield (), float(numbers)


def _histogram(metric: Distribution, tally: Tally) -> Family:
    total = 0
    buckets = []
    for bound, count in zip((*map(str, tally.bounds), "+Inf"), tally.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family = HistogramMetricFamily(metric.name, metric.answers)
    family.add_metric([], buckets, tally.sum)
    return family
