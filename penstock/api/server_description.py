"""The description of the routes that belong to no API: health, metrics, watching, the greeting."""

from typing import Literal

from penstock.api.description import (
    JSON,
    SSE,
    Answer,
    Description,
    Operation,
    ResponseModel,
    optional,
)
from penstock.api.live.rows import State
from penstock.api.native.description import ProblemDetails
from penstock.observe.history import MarkKind


class StageOffer(ResponseModel):
    """The stage of a demonstration: the page may break things."""

    engine_timeout: float
    """Seconds of silence after which the engine is restarted."""


class Greeting(ResponseModel):
    """The greeting for clients other than browsers."""

    message: str
    model: str
    """The name of the served model."""
    stage: StageOffer = optional()
    """Only on a server for a demonstration."""


class UpCount(ResponseModel):
    """How many upstreams of a model are up, and how many there are."""

    up: int
    all: int


class Health(ResponseModel):
    """The state of the server."""

    status: Literal["healthy", "ready", "live", "loading", "engine down", "store down", "draining"]
    """The first three mean success. The others say why the server cannot serve requests."""
    processes: dict[str, str] | None = None
    """The state of each server process by its number, if there are several (`--processes`)."""
    upstreams: dict[str, UpCount] | None = None
    """How many upstreams of each model are up (`--upstream`), as this process sees them. Upstreams
    that have not answered yet have the name ""."""


class LiveStream(ResponseModel):
    """A stream. A field that is absent has the value 0, "" or false."""

    id: str
    opened: float
    """When the stream was admitted, in seconds since 1970."""
    state: State
    key: str = optional()
    """The name of its API key; absent without keys."""
    model: str = optional()
    resumable: bool = optional()
    since: float = optional()
    """When the state began, in seconds since 1970. For a stalled stream: its last token."""
    prompt_tokens: int = optional()
    tokens: int = optional()
    """The tokens of the answer so far."""
    max_tokens: int = optional()
    rate: float = optional()
    """Tokens per second over the last second."""
    lag: int = optional()
    """How many events the slowest reader is behind."""
    lag_bytes: int = optional()
    """About how many bytes of text these events have."""
    place: int = optional()
    """The place in the queue; 1 is next."""
    eta: float = optional()
    """The expected wait in the queue, in seconds."""
    readers: int = optional()
    """How many connections read the stream or wait for its whole answer."""
    resumes: int = optional()
    """How many readers came after the first."""
    reason: str = optional()
    """How an ended stream ended."""


class LiveServer(ResponseModel):
    """The server now."""

    model: str
    process: int
    """The id of the process whose streams these are."""
    processes: int
    """How many server processes share the address (`--processes`); each shows its own streams."""
    engine: str
    engine_restarts: int
    slots: int
    """How many streams run at once; 0 is no limit."""
    running: int
    waiting: int
    draining: bool
    memory_full: bool
    store: Literal["", "up", "down"]
    """Empty if the server has no store."""


class LiveSecond(ResponseModel):
    """What the server did in one second."""

    time: int
    """When the second ended, in seconds since 1970."""
    tokens: int
    running: int
    waiting: int
    refused: int
    """Requests that the server had no room or time for (429 and 503)."""
    ttft: list[float] | None
    """The median and the 95th percentile of the times to the first token, in seconds."""
    itl: list[float] | None
    """The median and the 95th percentile of the inter-token latencies, in seconds."""


class LiveMark(ResponseModel):
    """Something that happened to the server."""

    time: int
    kind: MarkKind
    text: str


class LiveUpdate(ResponseModel):
    """The data of the events `snapshot` (everything) and `change` (what is new)."""

    time: float
    server: LiveServer
    streams: list[LiveStream]
    seconds: list[LiveSecond]
    marks: list[LiveMark]


def _health(meaning: str) -> Operation:
    return Operation(answers={200: Answer(meaning, {JSON: Health}), 503: NOT_NOW})


NOT_NOW = Answer(
    "The server cannot serve requests now: it is loading or draining, or its engine is down.",
    {JSON: Health},
    headers=["Retry-After"],
)

DESCRIPTION = Description(
    tag="server",
    about="Health checks and metrics.",
    error=ProblemDetails,
    operations={
        "greet": Operation(
            answers={
                200: Answer("A greeting, or the page.", {JSON: Greeting, "text/html": None}),
            },
        ),
        "get_health": _health("The server can serve requests."),
        "get_readiness": _health("A load balancer may send requests."),
        "get_liveness": Operation(answers={200: Answer("The process runs.", {JSON: Health})}),
        "watch": Operation(
            answers={200: Answer("The events `snapshot` and `change`.", {SSE: LiveUpdate})},
            problems=["admin_only", "out_of_range", "too_many_watchers"],
            parameters=[
                {
                    "name": "interval",
                    "in": "query",
                    "schema": {"type": "number", "minimum": 0.1, "maximum": 5, "default": 0.5},
                    "description": "Seconds between two updates.",
                }
            ],
            details="With keys, this needs an admin key. Without keys, only programs on the"
            " server's machine may watch. docs/live.md describes the events.",
        ),
        "get_metrics": Operation(
            answers={
                200: Answer(
                    "The metrics, in OpenMetrics' format if the request accepts it.",
                    {"text/plain": None, "application/openmetrics-text": None},
                )
            },
        ),
    },
)
