"""The server's present state, as its history and the live view need it."""

from penstock.api.upstreams import up_by_model
from penstock.engine.protocol import EngineHandle
from penstock.errors import PROBLEMS
from penstock.observe.history import Now
from penstock.stream.registry import Streams

REFUSALS = frozenset(code for code, kind in PROBLEMS.items() if kind.status in (429, 503))
"""The error codes of requests that the server had to refuse, rather than that were wrong."""


def state_of(engine: EngineHandle, streams: Streams) -> Now:
    """Return the state of a server now. It looks at each open stream once."""
    fleet = streams.fleet
    open_streams = streams.open_streams()
    waiting = sum([stream.phase in ("queued", "submitted", "accepted") for stream in open_streams])
    return Now(
        tokens=streams.meter.completion_tokens
        + sum([stream.num_tokens_here for stream in open_streams]),
        running=len(open_streams) - waiting,
        waiting=waiting,
        engine=engine.state,
        restarts=engine.num_restarts,
        takeovers=0 if fleet is None else fleet.num_taken_over,
        draining=streams.draining,
        memory_is_full=streams.memory_is_full,
        store_up=fleet is None or not fleet.problem,
        upstreams=up_by_model(engine.upstreams),
    )
