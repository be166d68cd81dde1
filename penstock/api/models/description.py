"""The description of the list of models for `/openapi.json`."""

from typing import Literal

from pydantic import JsonValue, RootModel

from penstock.api.description import (
    JSON,
    Answer,
    Description,
    Operation,
    ResponseModel,
    optional,
)
from penstock.api.openai.description import ErrorResponse


class Model(ResponseModel):
    """A model that this server serves, in OpenAI's form."""

    id: str
    """The model's name in requests."""
    object: Literal["model"]
    created: int
    """When the server started, in seconds since 1970."""
    owned_by: str
    context_length: int | None
    """Tokens that a prompt and its answer may have together; null while the model is loading."""
    features: list[str] = optional()
    """The optional features that requests to this model may use, such as `json_schema`, `grammar`,
    `top_logprobs` and `tools`; missing while the model is loading."""
    upstreams: list[dict[str, JsonValue]] = optional()
    """The servers that answer for this one (`--upstream`), as they were at the start: `kind`,
    `level` (`ids` with exact counts and continuations, or `text`), `model`, `context_length` and
    `slots`."""


class ModelList(ResponseModel):
    """The names of the served models in OpenAI's form: the first, its aliases, then the others."""

    object: Literal["list"]
    data: list[Model]


class AnthropicModel(ResponseModel):
    """A model that this server serves, in Anthropic's form."""

    type: Literal["model"]
    id: str
    """The model's name in requests."""
    display_name: str
    created_at: str
    """When the server started."""
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    """Tokens that a prompt and its answer may have together; null while the model is loading."""
    max_tokens: int | None
    """The number of `max_input_tokens`."""


class AnthropicModelPage(ResponseModel):
    """The names of the served models in Anthropic's form, in the order of OpenAI's."""

    data: list[AnthropicModel]
    has_more: Literal[False]
    first_id: str
    last_id: str


class AnyModel(RootModel[Model | AnthropicModel]):
    """The model. Requests with the header `anthropic-version` get Anthropic's form."""

    model_config = {"defer_build": True}


class AnyModelList(RootModel[ModelList | AnthropicModelPage]):
    """The list of models. Requests with the header `anthropic-version` get Anthropic's form."""

    model_config = {"defer_build": True}


DESCRIPTION = Description(
    tag="models",
    about="The served models, for OpenAI's and Anthropic's clients.",
    error=ErrorResponse,
    operations={
        "list_models": Operation(
            answers={200: Answer("The list of models.", {JSON: AnyModelList})},
        ),
        "get_model": Operation(
            answers={200: Answer("The model.", {JSON: AnyModel})},
            parameters=[
                {
                    "name": "model",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string"},
                    "description": "The model's name.",
                }
            ],
            problems=["model_not_found"],
        ),
    },
)
