"""The description of the routes that belong to no API: health, metrics and the greeting."""

from typing import Literal

from penstock.api.description import JSON, Answer, Description, Operation, ResponseModel
from penstock.api.native.description import ProblemDetails


class Greeting(ResponseModel):
    """The greeting for clients other than browsers."""

    message: str
    model: str
    """The name of the served model."""


class Health(ResponseModel):
    """The state of the server."""

    status: Literal["healthy", "ready", "live", "loading", "engine down", "store down", "draining"]
    """The first three mean success. The others say why the server cannot serve requests."""
    processes: dict[str, str] | None = None
    """The state of each server process by its number, if there are several (`--processes`)."""


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
