"""The description of OpenAI's Responses API for `/openapi.json`."""

from typing import Any, Literal

from pydantic import ConfigDict

from penstock.api.description import (
    GENERATION,
    JSON,
    OUR_HEADERS,
    SSE,
    Answer,
    Description,
    Operation,
    ResponseModel,
    generation,
    optional,
)
from penstock.api.openai.description import ErrorResponse

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class InputTokensDetails(ResponseModel):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    """Tokens that the engine had in its cache."""
    cache_write_tokens: int
    """Always 0."""


class OutputTokensDetails(ResponseModel):
    """Parts of the answer's tokens."""

    reasoning_tokens: int
    """Tokens of the model's reasoning."""


class ResponseUsage(ResponseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(ResponseModel):
    """Why a response failed."""

    code: str
    """OpenAI's code: `server_error`, `invalid_prompt` or `context_length_exceeded`."""
    message: str
    type: str
    """Penstock's error code."""
    retry_safe: bool
    """True if you may send the same request again, perhaps later. Only Penstock sends it."""


class IncompleteDetails(ResponseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] | None
    """Null if the request's time was up."""


class OutputItem(ResponseModel):
    """A part of the answer: a message, reasoning, or a call of a tool."""

    model_config = ConfigDict(extra="allow")

    type: Literal["message", "reasoning", "function_call", "custom_tool_call"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]


class ResponseObject(ResponseModel):
    """A response. It also has the fields of its request."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    """Seconds since 1970."""
    status: Status
    model: str
    output: list[OutputItem]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    """Null until the response has ended."""


class ResponseStreamEvent(ResponseModel):
    """The data of one event. Its other fields depend on its type."""

    model_config = ConfigDict(extra="allow")

    type: str
    """The same as the event's own type: `response.output_text.delta`."""
    sequence_number: int
    """Counts the events from 0. It is also the event's id, if the response can be resumed."""
    response: ResponseObject = optional()
    """Only in the first two events and the last one."""


class Deleted(ResponseModel):
    """A response that was forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(ResponseModel):
    """A page of the items that a response was given."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    """True if there are more items after `last_id`."""


_ID = {
    "name": "response",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "The response's id.",
}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


DESCRIPTION = Description(
    tag="responses",
    about="OpenAI's Responses API.",
    error=ErrorResponse,
    operations={
        "create_response": Operation(
            answers=generation(ResponseObject, ResponseStreamEvent),
            parameters=OUR_HEADERS,
            example={"input": "Tell me a story."},
            problems=GENERATION | {"model_not_found", "response_not_found"},
            details="The server stores the response for `previous_response_id` and for `GET"
            " /v1/responses/{response}`, unless `store` is false.",
        ),
        "get_response": Operation(
            answers={
                200: Answer("The response.", {JSON: ResponseObject, SSE: ResponseStreamEvent})
            },
            parameters=[
                _ID,
                _query("stream", {"type": "boolean"}, "With `true`, send the response's events."),
                _query(
                    "starting_after",
                    {"type": "integer"},
                    "The number of the last event that you have. The events after it follow.",
                ),
            ],
            problems=["bad_event_id", "history_lost", "not_resumable", "response_not_found"],
        ),
        "delete_response": Operation(
            answers={200: Answer("The response was forgotten.", {JSON: Deleted})},
            parameters=[_ID],
            problems=["response_not_found"],
        ),
        "cancel_response": Operation(
            answers={200: Answer("The response.", {JSON: ResponseObject})},
            parameters=[_ID],
            problems=["not_in_background", "response_not_found"],
        ),
        "list_input_items": Operation(
            answers={200: Answer("The items.", {JSON: InputItems})},
            parameters=[
                _ID,
                _query("order", {"enum": ["asc", "desc"]}, "The newest first (desc) or last."),
                _query("after", {"type": "string"}, "The id of the item before the page."),
                _query("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "Default: 20."),
            ],
            problems=["response_not_found"],
        ),
    },
)
