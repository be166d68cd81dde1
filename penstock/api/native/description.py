"""The description of the native API for `/openapi.json`."""

from typing import Any, Literal

from pydantic import RootModel

from penstock.api.description import (
    GENERATION,
    JSON,
    NDJSON,
    RETRY_HEADERS,
    SSE,
    STATUS_HEADER,
    Answer,
    Description,
    Operation,
    ResponseModel,
    generation,
    optional,
)
from penstock.api.openai.description import ChosenToken, PromptToken
from penstock.stream.status import State


class Usage(ResponseModel):
    """Token counts, as the engine reports them."""

    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens of the answer."""
    total_tokens: int
    """Tokens of the prompt and the answer together."""
    cached_tokens: int
    """Tokens of the prompt that the engine had in its cache."""


class Timings(ResponseModel):
    """Where the time of a stream went. All times count from its admission, in seconds."""

    queue_time: float
    """Seconds in the queue."""
    time_to_first_token: float | None
    """Seconds until the first token; null if there was none."""
    total_time: float
    """Seconds until the end of the stream."""
    tokens_per_second: float | None
    """Speed between the first and the last token; null with fewer than two tokens."""


class StreamFailure(ResponseModel):
    """The error that ended a stream."""

    code: str
    """An error code."""
    message: str
    """A sentence that says what went wrong and what to do."""
    retry_safe: bool
    """True if you may send the same request again."""
    resume_after: int = optional()
    """The id of the last delta. Only on a resumable stream that had deltas."""


class TokenEvent(ResponseModel):
    """A delta: text to append to the answer."""

    token: str
    """The text to append."""
    index: int
    """The number of the event, counted from 0. On a resumable stream it is also the event's id."""
    finished: Literal[False]
    logprobs: list[ChosenToken] = optional()
    """The log probabilities of its tokens. Only if the request asked for them."""
    token_ids: list[int] | None = optional()
    """The ids of its tokens; null if the engine did not name all of them. Only if asked for."""


class LastEvent(ResponseModel):
    """The terminal event. Every stream ends with exactly one; nothing follows it."""

    token: Literal[""]
    index: int
    """The number of deltas before this event."""
    finished: Literal[True]
    finish_reason: Literal["stop", "length", "cancelled", "deadline", "error"]
    """Why the stream ended."""
    usage: Usage
    timings: Timings
    reproducible: Literal[False] = optional()
    """False if the request's seed alone does not give this text again; otherwise absent."""
    ignored: list[str] = optional()
    """Fields that were left out or changed, if that was not known when the response began."""
    token_ids: list[int] = optional()
    """The ids of the last tokens, which have no text. Only if asked for."""
    prompt_token_ids: list[int] = optional()
    """The ids of the prompt's tokens. Only if asked for."""
    error: StreamFailure = optional()
    """Only with the finish reason `error`."""


class QueueEvent(ResponseModel):
    """The stream's place in the queue: the data of an event named `queue`, which has no id."""

    position: int
    """The place in the queue; 1 is next."""
    eta: float | None
    """Estimated seconds until the stream starts; null if there is no estimate yet."""


class StatusEvent(ResponseModel):
    """What happens to the stream: the data of an event named `status`, which has no id."""

    state: State
    """The present state of the stream."""
    position: int = optional()
    """Queued: the place in the queue; 1 is next."""
    eta: float = optional()
    """Queued: the estimated seconds until the stream starts, if there is an estimate."""
    prompt_tokens: int = optional()
    """Prefill: the tokens to read."""
    read_tokens: int = optional()
    """Prefill: how many of them the engine has read, if it tells."""
    tokens: int = optional()
    """All but queued, prefill and stalled: the number of tokens that the answer has, and keeps."""
    seconds: float = optional()
    """Stalled: for how long the engine has given no sign of life, in seconds."""
    limit: float = optional()
    """Stalled: the seconds after which the engine is restarted."""


class GenerateEvent(RootModel[TokenEvent | LastEvent | QueueEvent | StatusEvent]):
    """The data of one event of a native stream."""

    model_config = {"defer_build": True}


class GenerateAnswer(ResponseModel):
    """The whole answer to `POST /generate`."""

    text: str
    """The generated text."""
    usage: Usage
    request_time: float
    """Seconds from the stream's admission to its end."""
    finish_reason: Literal["stop", "length", "cancelled", "deadline"]
    """Why the answer ended."""
    timings: Timings
    logprobs: list[ChosenToken] = optional()
    """The log probabilities of the answer's tokens. Only if the request asked for them."""
    token_ids: list[int] | None = optional()
    """The ids of the answer's tokens; null if the engine did not name all. Only if asked for."""
    prompt_token_ids: list[int] = optional()
    """The ids of the prompt's tokens. Only if asked for."""
    prompt_logprobs: list[dict[str, PromptToken] | None] = optional()
    """For each token of the prompt: the likeliest tokens by id. Only if asked for."""


class CancelledStream(ResponseModel):
    """The end of a stream that a client cancelled, or that had ended before."""

    id: str
    """The stream's id."""
    finish_reason: Literal["stop", "length", "cancelled", "deadline", "error"]
    """`cancelled`, or the reason for which the stream had already ended."""


class CreatedToken(ResponseModel):
    """A token that lets a program without a key read one stream."""

    token: str
    """The token. It is a secret until the stream is no longer kept."""
    url: str
    """The stream's path with the token, for `EventSource`. Add the server's address before it."""


class InvalidField(ResponseModel):
    """A field of the request that is not acceptable."""

    field: str
    """The field's name, with dots between the levels: `messages.0.role`."""
    code: str
    """An error code."""
    message: str
    """A sentence that says what is wrong."""


class ProblemDetails(ResponseModel):
    """An error (RFC 9457)."""

    type: str
    """A URN that ends with the error code."""
    title: str
    """A few words for this class of errors."""
    status: int
    """The HTTP status."""
    detail: str
    """A sentence that says what was wrong and what to do."""
    code: str
    """An error code. An engine may also report codes of its own."""
    retry_safe: bool
    """True if you may send the same request again, perhaps later."""
    errors: list[InvalidField] = optional()
    """Every field that is not acceptable. Only if fields are not acceptable."""


STREAM_ID: dict[str, Any] = {
    "name": "stream_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "The stream's id, from the header `X-Stream-ID`.",
}
_EVENT_ID = (
    "The id of the last event that you received, `STREAM.N`, or its number N. Without it, you get"
    " all events."
)
_NAMED = r"[A-Za-z0-9_-]{1,64}\."

DESCRIPTION = Description(
    tag="native",
    about="Generate text, and resume or cancel streams.",
    error=ProblemDetails,
    operations={
        "generate": Operation(
            answers=generation(GenerateAnswer, GenerateEvent),
            parameters=[*RETRY_HEADERS, STATUS_HEADER],
            example={"prompt": "Once upon a time", "max_tokens": 20},
            problems=GENERATION
            - {
                "answer_too_long",
                "invalid_tools",
                "too_many_choices",
            }
            | {"model_not_found"},
            details="Give `prompt` or `messages`.",
        ),
        "read_stream": Operation(
            answers={
                200: Answer(
                    "The events after the last one that you received, in the form of the API that"
                    " opened the stream.",
                    {SSE: None, NDJSON: None},
                    headers=["X-Stream-ID"],
                ),
                204: Answer("The stream has ended, and you received all of its events.", {}),
            },
            parameters=[
                STREAM_ID,
                {
                    "name": "Last-Event-ID",
                    "in": "header",
                    "schema": {"type": "string", "pattern": f"^({_NAMED})?[0-9]{{1,15}}$"},
                    "description": _EVENT_ID,
                },
                {
                    "name": "after",
                    "in": "query",
                    "schema": {
                        "anyOf": [
                            {"type": "integer", "minimum": 0},
                            {"type": "string", "pattern": f"^{_NAMED}[0-9]{{1,15}}$"},
                        ]
                    },
                    "description": _EVENT_ID,
                },
                {
                    "name": "status_events",
                    "in": "query",
                    "schema": {"type": "boolean", "default": False},
                    "description": "With `true`, events named `status` tell what happens to the"
                    " stream.",
                },
                STATUS_HEADER,
                {
                    "name": "token",
                    "in": "query",
                    "schema": {"type": "string"},
                    "description": "A token of this stream, from `POST /streams/{stream_id}/token`,"
                    " in the place of a key. A request with a key needs none.",
                },
            ],
            problems=[
                "bad_event_id",
                "stream_not_found",
                "not_resumable",
                "history_lost",
                "invalid_stream_token",
                "invalid_value",
            ],
            details="`Last-Event-ID` takes precedence over `after`. Any number of readers can read"
            " a stream at once, while it runs and after it has ended.",
        ),
        "cancel_stream": Operation(
            answers={200: Answer("How the stream ended.", {JSON: CancelledStream})},
            parameters=[STREAM_ID],
            problems=["stream_not_found"],
        ),
        "create_stream_token": Operation(
            answers={200: Answer("The token.", {JSON: CreatedToken})},
            parameters=[STREAM_ID],
            problems=["stream_not_found", "not_resumable", "history_lost"],
            details="The token is valid while the stream can be read, at every server that shares"
            " the stream's log. It ends with your key. Without keys, nobody needs a token.",
        ),
    },
)
