"""The words in which an API describes its routes for `/openapi.json`.

Each API's folder has a `Description` of its routes (`native/description.py` is the smallest one),
which `openapi` turns into OpenAPI. Models of requests are the ones that parse them. Models of
responses exist only here: a test compares them with real responses.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from penstock.errors import PROBLEMS
from penstock.request import MAX_TIMEOUT_S
from penstock.stream.quotas import TOKEN_HEADERS
from penstock.web.problems import RouteGroup

JSON = "application/json"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


class ResponseModel(BaseModel):
    """The base of the models of JSON objects in responses and events."""

    model_config = ConfigDict(use_attribute_docstrings=True, defer_build=True)


def optional() -> Any:
    """Return the default of a field that may be absent from an object."""
    return Field(default=None)


@dataclass(frozen=True)
class Answer:
    """A response that does not have the form of an error.

    `content` maps each media type to the model of its JSON, or to None for text. For Server-Sent
    Events it is the model of one event's data, and for NDJSON of one line; None stands for the
    events or lines of every API. `headers` are the response's headers besides those that every
    response has.
    """

    meaning: str
    content: Mapping[str, type[BaseModel] | None]
    headers: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One route: its answers by status, and everything that a client may send.

    The model of the body comes from the route's dialect; `example` is a body.
    `problems` are the error codes that only some routes have; `openapi` adds the others.
    `parameters` are OpenAPI's parameter objects. `details` follows the summary, which is the first
    line of the endpoint's docstring.
    """

    answers: Mapping[int, Answer]
    problems: Collection[str] = ()
    parameters: Sequence[Mapping[str, Any]] = ()
    example: Mapping[str, Any] | None = None
    details: str = ""


@dataclass(frozen=True)
class Description:
    """The public part of an API: `operations` by their route's name, and its form of an error."""

    tag: str
    about: str
    error: type[BaseModel]
    operations: Mapping[str, Operation]


@dataclass(frozen=True)
class Api(RouteGroup):
    """An API: its routes, its form of an error, and its description.

    `description` names the module with the `DESCRIPTION`. It is imported when a client asks for it,
    because its models take 40 ms.
    """

    description: str


JOINING = frozenset(
    {
        "bad_event_id",
        "history_lost",
        "idempotency_key_reused",
        "not_resumable",
        "store_unavailable",
        "stream_not_found",
    }
)
"""The error codes of a request that joins or continues an earlier one's answer."""

# These codes belong to the addresses of streams, models and files.
_NOT_GENERATION = {
    "admin_only",
    "invalid_stream_token",
    "method_not_allowed",
    "model_not_found",
    "no_such_file",
    "no_such_route",
    "not_in_background",
    "not_resumable",
    "not_served",
    "response_not_found",
    "too_many_watchers",
}
GENERATION = PROBLEMS.keys() - _NOT_GENERATION
"""The error codes of a request for a generation, on any API."""


_GENERATION_HEADERS = [
    "X-Stream-ID",
    "Idempotency-Replayed",
    "X-Penstock-Ignored",
    "X-Penstock-Max-Tokens",
    *TOKEN_HEADERS,
]


def generation(
    whole: type[BaseModel], event: type[BaseModel], stream: str = SSE
) -> Mapping[int, Answer]:
    """Return the answers of a route that generates: the whole answer, or a stream of events.

    `stream` is the stream's media type.
    """
    meaning = "The whole answer, or a stream of events if the request asks for one."
    return {200: Answer(meaning, {JSON: whole, stream: event}, headers=_GENERATION_HEADERS)}


RETRY_HEADERS: list[dict[str, Any]] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[ -~]{1,255}$"},
        "description": "A request with the key and the body of an earlier one gets the answer to"
        " that one, while it runs or is kept. Only for answers with one choice.",
    },
    {
        "name": "Last-Event-ID",
        "in": "header",
        "schema": {"type": "string", "pattern": r"^[A-Za-z0-9_-]{1,64}\.[0-9]{1,15}$"},
        "description": "The id of the last event that you received. With it, the response is the"
        " rest of that event's stream, and the body has no effect.",
    },
]
"""The headers of a request that may be a repeated one."""

STATUS_HEADER: dict[str, Any] = {
    "name": "X-Penstock-Status",
    "in": "header",
    "schema": {"type": "boolean", "default": False},
    "description": "With `true`, comments in the stream tell what happens to it: its place in the"
    " queue, that the engine restarts, that it goes on. Only for streams with one choice.",
}

OUR_HEADERS: list[dict[str, Any]] = [
    *RETRY_HEADERS,
    STATUS_HEADER,
    {
        "name": "X-Penstock-Resumable",
        "in": "header",
        "schema": {"type": "boolean", "default": False},
        "description": "With `true`, the stream outlives its connection, and `GET"
        " /streams/{stream_id}` returns the rest. Only for streams with one choice.",
    },
    {
        "name": "X-Penstock-Timeout",
        "in": "header",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
        "description": "Seconds, including the wait in the queue, after which the answer ends with"
        " the stop reason `deadline`. Up to six decimals.",
    },
]
"""The headers in which APIs of others carry Penstock's own options (see `headers`)."""
