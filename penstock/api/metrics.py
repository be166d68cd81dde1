"""`GET /metrics` for Prometheus, and the values that are read only when it asks."""

import re
from collections.abc import Callable

from prometheus_client import CollectorRegistry, ProcessCollector, exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock import __version__, supervision
from penstock.api.siblings import Siblings
from penstock.engine.protocol import UPSTREAM_OUTCOMES, EngineHandle
from penstock.observe.metrics import Levels, Metrics
from penstock.settings import Settings
from penstock.stream.memory import MemoryGuard
from penstock.stream.registry import Streams
from penstock.web.liveness import Liveness

OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST
PLAIN = exposition.CONTENT_TYPE_PLAIN_0_0_4
# The phases of a stream without a slot.
WAITING = ("queued", "submitted", "accepted")
# A weight above zero (RFC 9110, section 12.4.2).
_WEIGHT = re.compile(r"1(\.0*)?|0\.0*[1-9][0-9]*")


def metrics_routes(registry: CollectorRegistry, siblings: Siblings | None = None) -> list[Route]:
    """Return the route `/metrics`: Prometheus' text format, or OpenMetrics on request."""

    async def metrics(http: Request) -> Response:
        """Return the server's metrics for Prometheus."""
        source = registry if siblings is None else await siblings.metrics()
        if _takes_openmetrics(http.headers.get("accept", "")):
            content, content_type = _openmetrics(source), OPENMETRICS
        else:
            content, content_type = exposition.generate_latest(source), PLAIN
        return Response(content, headers={"Content-Type": content_type, "Vary": "Accept"})

    return [Route("/metrics", metrics, name="get_metrics")]


def _openmetrics(source: Collector) -> bytes:
    content: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call] # it has no annotations
    return content


def _takes_openmetrics(accept: str) -> bool:
    """Return True if the client asks for OpenMetrics 1.0.0. Anything else gets the plain format.

    prometheus-client's own choice raises exceptions at malformed versions, and repeats others.
    """
    for media_range in accept.lower().replace(" ", "").split(","):
        kind, *parameters = media_range.split(";")
        given = dict(each.partition("=")[::2] for each in parameters)
        if kind == "application/openmetrics-text" and given.get("version", "1.0.0") == "1.0.0":
            return _WEIGHT.fullmatch(given.get("q", "1")) is not None
    return False


def metrics_registry(streams: Streams, levels: Callable[[], Levels]) -> CollectorRegistry:
    """Return the metrics of the server and of its process (memory, processor, files)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(Metrics(streams.meter, levels))
    return registry


def levels_of(
    settings: Settings,
    engine: EngineHandle,
    streams: Streams,
    liveness: Liveness,
    memory: MemoryGuard,
    name_of_model: Callable[[], str],
) -> Callable[[], Levels]:
    """Return a function that reads the values that nobody has to count."""

    fleet = streams.fleet

    def read() -> Levels:
        open_streams = streams.open_streams()
        running = [stream for stream in open_streams if stream.phase not in WAITING]
        usages = [stream.counted_usage for stream in open_streams]
        of_keys = [
            (stream.record.owner.label, stream.counted_usage)
            for stream in open_streams
            if stream.record.owner.key_id
        ]
        lags = liveness.lags()
        return Levels(
            version=__version__,
            engine=settings.engine,
            model=name_of_model(),
            running=len(running),
            waiting=len(open_streams) - len(running),
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            usage_by_key=streams.meter.usage_now(of_keys),
            kept=len(streams.kept),
            kept_bytes=streams.kept.num_bytes,
            held_bytes=memory.held_bytes(),
            used_bytes=memory.used(),
            memory_limit=memory.limit,
            readers=len(lags),
            lag=sum(lags),
            greatest_lag=max(lags, default=0),
            blocked=liveness.num_blocked(),
            stalled=liveness.num_stalled,
            slots=streams.admission.num_slots,
            cached_tokens=sum(stream.usage.total_tokens for stream in running),
            cache_tokens=0 if engine.info is None else engine.info.cache_tokens,
            engine_up=engine.state == "ready",
            engine_restarts=engine.num_restarts,
            engine_stopping=streams.num_stopping,
            task_failures={(name,): number for name, number in supervision.failures.items()},
            draining=streams.draining,
            store_up=fleet is None or not fleet.problem,
            stored=0 if fleet is None else fleet.num_stored,
            followed=0 if fleet is None else fleet.num_followed,
            taken_over=0 if fleet is None else fleet.num_taken_over,
            logs_lost=0 if fleet is None else fleet.num_lost,
            upstreams_up={(each.name, each.model): each.is_up for each in engine.upstreams},
            upstream_requests={
                (each.name, outcome): getattr(each, outcome)
                for each in engine.upstreams
                for outcome in UPSTREAM_OUTCOMES
            },
            by_upstream={
                name: {(each.name,): getattr(each, name) for each in engine.upstreams}
                for name in ("running", "failures", "failovers", "look_time")
            },
        )

    return read
