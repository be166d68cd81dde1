"""`GET /metrics` for Prometheus, and the values that are read only when it asks."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock import __version__
from penstock.engine.protocol import EngineHandle
from penstock.observe.metrics import Levels, Metrics
from penstock.settings import Settings
from penstock.stream.registry import Streams
from penstock.web.liveness import Liveness


def metrics_routes(registry: CollectorRegistry) -> list[Route]:
    """Return the route `/metrics`: Prometheus' text format, or OpenMetrics on request."""

    async def metrics(http: Request) -> Response:
        """Return the server's metrics for Prometheus."""
        encode, content_type = choose_encoder(http.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type, "Vary": "Accept"})

    return [Route("/metrics", metrics, name="get_metrics")]


def metrics_registry(
    settings: Settings, engine: EngineHandle, streams: Streams, liveness: Liveness
) -> CollectorRegistry:
    """Return the metrics of the server and of its process (memory, processor, files)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(Metrics(streams.meter, levels_of(settings, engine, streams, liveness)))
    return registry


def levels_of(
    settings: Settings, engine: EngineHandle, streams: Streams, liveness: Liveness
) -> Callable[[], Levels]:
    """Return a function that reads the values that nobody has to count."""

    def read() -> Levels:
        open_streams = streams.open_streams()
        waiting = sum(
            stream.phase in ("queued", "submitted", "accepted") for stream in open_streams
        )
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
            model=settings.served_name,
            running=len(open_streams) - waiting,
            waiting=waiting,
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            usage_by_key=streams.meter.usage_now(of_keys),
            kept=len(streams.kept),
            kept_bytes=streams.kept.num_bytes,
            readers=len(lags),
            lag=sum(lags),
            greatest_lag=max(lags, default=0),
            blocked=liveness.num_blocked(),
            stalled=liveness.num_stalled,
            slots=streams.admission.num_slots,
            engine_up=engine.state == "ready",
            engine_restarts=engine.num_restarts,
            draining=streams.draining,
        )

    return read
