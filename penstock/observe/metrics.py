"""The table of metrics: the name, kind, labels and meaning of each metric, and where its value is.

In: the plain numbers of `meter`, and `Levels`, read at each scrape. Out: families of samples for
prometheus-client. `python -m tools.reference` writes docs/reference/metrics.md from this table.
Names follow Prometheus' conventions: base units, and `_total` for counters. Labels never hold text
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

from penstock.observe.meter import KeyUsage, Meter, Tally


@dataclass(frozen=True)
class Levels:
    """Values that are read at each scrape. Tokens are those of streams that have not ended.

    `usage_by_key` has everything that each API key has used. `cached_tokens` are those of running
    streams, and `cache_tokens` those for which the KV cache has room, or 0 if that is not known.
    `upstreams_up` is by upstream and model, `upstream_requests` by upstream and outcome;
    `by_upstream` has numbers of each upstream.
    """

    version: str
    engine: str
    model: str
    running: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int
    usage_by_key: Mapping[str, KeyUsage]
    kept: int
    kept_bytes: int
    held_bytes: Mapping[str, int]
    used_bytes: int
    memory_limit: int
    readers: int
    lag: int
    greatest_lag: int
    blocked: int
    stalled: int
    slots: int
    cached_tokens: int
    cache_tokens: int
    engine_up: bool
    engine_restarts: int
    engine_stopping: int
    task_failures: Mapping[tuple[str, ...], float]
    draining: bool
    store_up: bool
    stored: int
    followed: int
    taken_over: int
    logs_lost: int
    upstreams_up: Mapping[tuple[str, ...], float]
    upstream_requests: Mapping[tuple[str, ...], float]
    by_upstream: Mapping[str, Mapping[tuple[str, ...], float]]


def _by_key(usages: Mapping[str, KeyUsage], name: str) -> dict[tuple[str, ...], float]:
    return {(key,): getattr(usage, name) for key, usage in usages.items()}


def _cache_usage(levels: Levels) -> dict[tuple[str, ...], float]:
    """Return the share of the KV cache that is in use; nothing if its size is not known.

    Streams that share the beginning of their prompts may share it in the cache. They count in full.
    """
    size = levels.cache_tokens
    return {(): min(1.0, levels.cached_tokens / size)} if size else {}


Numbers = float | Mapping[tuple[str, ...], float]
"""A number, or a number for each combination of label values."""


@dataclass(frozen=True)
class Histogram:
    """A histogram. `read` returns its tally."""

    name: str
    help: str
    read: Callable[[Meter], Tally]
    kind: Literal["histogram"] = "histogram"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counter:
    """A counter. It only grows, and its name ends in `_total`."""

    name: str
    help: str
    read: Callable[[Meter, Levels], Numbers]
    labels: tuple[str, ...] = ()
    kind: Literal["counter"] = "counter"


@dataclass(frozen=True)
class Gauge:
    """A gauge. It goes up and down.

    `over_processes` says what several server processes report together: the sum of their values,
    the greatest, or each with a label `process`.
    """

    name: str
    help: str
    read: Callable[[Levels], Numbers]
    labels: tuple[str, ...] = ()
    kind: Literal["gauge"] = "gauge"
    over_processes: Literal["sum", "max", "each"] = "sum"


RESTARTS = "penstock_process_restarts_total"
"""The counter that only the supervisor of several processes raises."""

METRICS: tuple[Histogram | Counter | Gauge, ...] = (
    # Latency for clients, measured when a send completes.
    Histogram(
        "penstock_time_to_first_token_seconds",
        "Time from a request's admission until the send that carries its first delta completes.",
        lambda meter: meter.first_token,
    ),
    Histogram(
        "penstock_inter_token_latency_seconds",
        "Time between two sends of a response that carry new deltas, however many deltas a send "
        "merges.",
        lambda meter: meter.gap,
    ),
    Histogram(
        "penstock_e2e_latency_seconds",
        "Time from a request's admission until its last send completes, for answers that end with "
        "stop or length.",
        lambda meter: meter.total,
    ),
    # Latency of the engine, measured when its deltas reach the log.
    Histogram(
        "penstock_engine_time_to_first_token_seconds",
        "Time from a request's admission until its first delta reaches the log.",
        lambda meter: meter.engine_first_token,
    ),
    Histogram(
        "penstock_engine_inter_token_latency_seconds",
        "Time between two deltas of a stream as they reach the log, however many tokens a delta "
        "holds.",
        lambda meter: meter.engine_gap,
    ),
    Histogram(
        "penstock_engine_e2e_latency_seconds",
        "Time from a request's admission until its terminal event reaches the log, for streams "
        "that end with stop or length.",
        lambda meter: meter.engine_total,
    ),
    Histogram(
        "penstock_queue_time_seconds",
        "Time that a request waits for a slot, including requests that leave the queue without a "
        "slot.",
        lambda meter: meter.queue_time,
    ),
    Histogram(
        "penstock_prefill_time_seconds",
        "Time from the moment a request gets a slot until its first delta reaches the log.",
        lambda meter: meter.prefill_time,
    ),
    # The server's own delays, and those of its clients.
    Histogram(
        "penstock_delivery_seconds",
        "Time from the moment an event reaches the log until the send that carries it completes, "
        "for the oldest event of each send.",
        lambda meter: meter.delivery,
    ),
    Histogram(
        "penstock_event_loop_lag_seconds",
        "Delay with which a 0.1 s timer of the server's event loop fires.",
        lambda meter: meter.loop_lag,
    ),
    Histogram(
        "penstock_abort_seconds",
        "Time from the moment the server learns that a stream must stop (the client left, a "
        "cancel, a stop string) until the engine itself works on the request no more.",
        lambda meter: meter.abort,
    ),
    Histogram(
        "penstock_store_seconds",
        "Time that the store of logs takes to confirm a write. Nothing is sent before.",
        lambda meter: meter.store_ack,
    ),
    Counter(
        "penstock_sends_total",
        "Sends to clients that carried events.",
        lambda meter, _: meter.num_sends,
    ),
    Counter(
        "penstock_events_sent_total",
        "Events (deltas and terminal events) sent to clients.",
        lambda meter, _: meter.num_events_sent,
    ),
    Gauge(
        "penstock_readers",
        "Connections that are reading a stream.",
        lambda levels: levels.readers,
    ),
    Gauge(
        "penstock_reader_lag_events",
        "Logged events that are not yet sent, summed over all readers.",
        lambda levels: levels.lag,
    ),
    Gauge(
        "penstock_reader_lag_max_events",
        "Logged events that are not yet sent to the reader that is furthest behind.",
        lambda levels: levels.greatest_lag,
        over_processes="max",
    ),
    Gauge(
        "penstock_readers_blocked",
        "Readers whose current send has waited for the client for a second or longer.",
        lambda levels: levels.blocked,
    ),
    Counter(
        "penstock_readers_stalled_total",
        "Readers dropped because their clients took no data for --stall-timeout seconds.",
        lambda _, levels: levels.stalled,
    ),
    # Streams. At every scrape, started = ended + running + waiting.
    Counter(
        "penstock_streams_started_total",
        "Streams admitted, whether they got a slot at once or waited in the queue.",
        lambda meter, _: meter.num_started,
    ),
    Counter(
        "penstock_streams_ended_total",
        "Streams that ended, by cause (stop, length, cancelled, client_gone, deadline, error, "
        "refused, or moved: another replica goes on with it, or it waited for the first upstream "
        "and has got an id of its own) and, for error and refused, by error code.",
        lambda meter, _: meter.num_ended,
        ("cause", "code"),
    ),
    Gauge(
        "penstock_streams_running",
        "Streams that have a slot.",
        lambda levels: levels.running,
    ),
    Gauge(
        "penstock_streams_waiting",
        "Streams that wait for a slot.",
        lambda levels: levels.waiting,
    ),
    Gauge(
        "penstock_streams_kept",
        "Ended streams that clients can still read.",
        lambda levels: levels.kept,
    ),
    Gauge(
        "penstock_streams_kept_bytes",
        "Approximate memory of the ended streams that clients can still read, in bytes.",
        lambda levels: levels.kept_bytes,
    ),
    Gauge(
        "penstock_memory_held_bytes",
        "Memory of streams (this server's and other servers' that it shows), of what waits for the"
        " store, and of the bodies under way, in bytes.",
        lambda levels: {(kind,): number for kind, number in levels.held_bytes.items()},
        ("kind",),
    ),
    Gauge(
        "penstock_memory_used_bytes",
        "Memory in use, in bytes, as it is compared with the limit.",
        lambda levels: levels.used_bytes,
        over_processes="each",
    ),
    Gauge(
        "penstock_memory_limit_bytes",
        "The limit of the server's memory in bytes (--memory-limit).",
        lambda levels: levels.memory_limit,
        over_processes="each",
    ),
    Counter(
        "penstock_resumes_total",
        "Streams read again (resumed, or joined by an Idempotency-Key), by phase (running, ended).",
        lambda meter, _: meter.num_resumed,
        ("phase",),
    ),
    Counter(
        "penstock_prompt_tokens_total",
        "Prompt tokens that the engine accepted, once for all choices of a prompt.",
        lambda meter, levels: meter.prompt_tokens + levels.prompt_tokens,
    ),
    Counter(
        "penstock_completion_tokens_total",
        "Tokens that the engine generated.",
        lambda meter, levels: meter.completion_tokens + levels.completion_tokens,
    ),
    # Requests.
    Counter(
        "penstock_http_requests_total",
        "Finished HTTP requests by route, method and status, with status 0 if the client left "
        "before the response began.",
        lambda meter, _: meter.num_requests,
        ("route", "method", "status"),
    ),
    Counter(
        "penstock_refusals_total",
        "Requests answered with an error instead of a result, by error code.",
        lambda meter, _: meter.num_refused,
        ("reason",),
    ),
    # API keys, by their configured names; "other" sums up names beyond 64.
    Counter(
        "penstock_key_requests_total",
        "Finished HTTP requests of an API key, by the key's configured name.",
        lambda _, levels: _by_key(levels.usage_by_key, "num_requests"),
        ("key",),
    ),
    Counter(
        "penstock_key_refusals_total",
        "Requests of an API key that were answered with an error instead of a result.",
        lambda _, levels: _by_key(levels.usage_by_key, "num_refused"),
        ("key",),
    ),
    Counter(
        "penstock_key_prompt_tokens_total",
        "Prompt tokens of an API key's requests, once for all choices of a prompt.",
        lambda _, levels: _by_key(levels.usage_by_key, "prompt_tokens"),
        ("key",),
    ),
    Counter(
        "penstock_key_completion_tokens_total",
        "Tokens generated for an API key.",
        lambda _, levels: _by_key(levels.usage_by_key, "completion_tokens"),
        ("key",),
    ),
    # The engine and the server.
    Gauge(
        "penstock_engine_up",
        "1 if the engine accepts requests, 0 if it does not.",
        lambda levels: levels.engine_up,
        over_processes="each",
    ),
    Counter(
        "penstock_engine_restarts_total",
        "Times that the engine's process died and was restarted.",
        lambda _, levels: levels.engine_restarts,
    ),
    Counter(
        RESTARTS,
        "Times that one of several server processes (--processes) ended and was started again.",
        lambda _, __: 0,
    ),
    Gauge(
        "penstock_engine_stopping",
        "Cancelled requests that the engine still works on. They have their slots.",
        lambda levels: levels.engine_stopping,
    ),
    Counter(
        "penstock_task_failures_total",
        "Failures of the server's own long-lived tasks, by task. Each was started again.",
        lambda _, levels: levels.task_failures,
        ("task",),
    ),
    Gauge(
        "penstock_engine_slots",
        "Requests that the engine runs at once, or 0 if it has no limit.",
        lambda levels: levels.slots,
    ),
    Gauge(
        "penstock_kv_cache_usage_ratio",
        "Tokens of the running streams, prompts and answers, as a share of those for which the "
        "engine's KV cache has room: 0 to 1. Missing if the engine does not say how many these "
        "are (remote).",
        _cache_usage,
        over_processes="max",
    ),
    Gauge(
        "penstock_draining",
        "1 if the server is shutting down and refuses new requests, 0 if it is not.",
        lambda levels: levels.draining,
        over_processes="each",
    ),
    # The store of logs and the other replicas.
    Gauge(
        "penstock_store_up",
        "1 if the store of logs answers, or if there is none; 0 if it does not.",
        lambda levels: levels.store_up,
        over_processes="each",
    ),
    Gauge(
        "penstock_streams_stored",
        "Open streams of this server whose logs are in the store.",
        lambda levels: levels.stored,
    ),
    Gauge(
        "penstock_streams_followed",
        "Streams of other replicas that clients read at this server.",
        lambda levels: levels.followed,
    ),
    Counter(
        "penstock_takeovers_total",
        "Streams that this server took over from another replica, or from its own last run.",
        lambda _, levels: levels.taken_over,
    ),
    Counter(
        "penstock_logs_lost_total",
        "Streams of this server that another replica took over although it was running.",
        lambda _, levels: levels.logs_lost,
    ),
    # The upstreams of a remote engine, by their addresses.
    Gauge(
        "penstock_upstream_up",
        "1 if the upstream gets requests, 0 while it is left out. The label model names the model "
        "that it serves; it is empty until that is known.",
        lambda levels: levels.upstreams_up,
        ("upstream", "model"),
        over_processes="each",
    ),
    Gauge(
        "penstock_upstream_running",
        "Requests that the upstream works on.",
        lambda levels: levels.by_upstream["running"],
        ("upstream",),
    ),
    Counter(
        "penstock_upstream_requests_total",
        "Answers, or parts of answers, that the upstream was asked for, by outcome (answered, "
        "failed, refused, cancelled).",
        lambda _, levels: levels.upstream_requests,
        ("upstream", "outcome"),
    ),
    Counter(
        "penstock_upstream_failures_total",
        "Failures of the upstream: of answers, of looks at it, and of tokenizing.",
        lambda _, levels: levels.by_upstream["failures"],
        ("upstream",),
    ),
    Counter(
        "penstock_upstream_failovers_total",
        "Answers that began anew or went on at another upstream after this one failed.",
        lambda _, levels: levels.by_upstream["failovers"],
        ("upstream",),
    ),
    Gauge(
        "penstock_upstream_look_seconds",
        "How long the last look at the upstream took, in seconds.",
        lambda levels: levels.by_upstream["look_time"],
        ("upstream",),
        over_processes="max",
    ),
    Gauge(
        "penstock_build_info",
        "Always 1, with the version, the engine and the model as labels.",
        lambda levels: {(levels.version, levels.engine, levels.model): 1},
        ("version", "engine", "model"),
        over_processes="max",
    ),
)


class Metrics(Collector):
    """Makes Prometheus samples from one server's numbers. Calls `read_levels` at each scrape."""

    def __init__(self, meter: Meter, read_levels: Callable[[], Levels]) -> None:
        self._meter = meter
        self._read_levels = read_levels
        # A request that continues after the engine died may take back a token or two.
        self._highest: dict[tuple[str, ...], float] = {}

    def collect(self) -> Iterator[Family]:
        """Yield the metric families for prometheus-client."""
        levels = self._read_levels()
        for metric in METRICS:
            if isinstance(metric, Histogram):
                yield _histogram(metric, metric.read(self._meter))
            elif isinstance(metric, Counter):
                counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, number in _samples(metric.read(self._meter, levels)):
                    counter.add_metric(labels, self._not_less(metric.name, labels, number))
                yield counter
            else:
                gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, number in _samples(metric.read(levels)):
                    gauge.add_metric(labels, number)
                yield gauge

    def describe(self) -> Iterator[Family]:
        """Yield nothing, so that registering this collector does not read any value."""
        return iter(())

    def _not_less(self, name: str, labels: tuple[str, ...], number: float) -> float:
        """Return the highest number so far: Prometheus takes a decrease for a counter's reset."""
        name_and_labels = (name, *labels)
        highest = max(number, self._highest.get(name_and_labels, 0.0))
        self._highest[name_and_labels] = highest
        return highest


def _samples(numbers: Numbers) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(numbers, Mapping):
        yield from numbers.items()
    else:
        yield (), float(numbers)


def _histogram(metric: Histogram, tally: Tally) -> Family:
    total = 0
    buckets = []
    for bound, count in zip((*map(str, tally.bounds), "+Inf"), tally.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family = HistogramMetricFamily(metric.name, metric.help)
    family.add_metric([], buckets, tally.sum)
    return family
