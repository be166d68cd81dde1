"""The description of Ollama's API for `/openapi.json`."""

from typing import Any, Literal

from pydantic import RootModel

from penstock.api.description import (
    GENERATION,
    JSON,
    NDJSON,
    OUR_HEADERS,
    STATUS_HEADER,
    Answer,
    Description,
    Operation,
    ResponseModel,
    generation,
    optional,
)


class OllamaCalledFunction(ResponseModel):
    """The function that the model calls."""

    index: int
    """The number of the call."""
    name: str
    arguments: dict[str, Any]
    """The arguments. If the answer ended within them, as much as is complete."""


class OllamaCall(ResponseModel):
    """A tool call, whole."""

    id: str
    function: OllamaCalledFunction


class OllamaMessage(ResponseModel):
    """A part of the answer, or the whole answer."""

    role: Literal["assistant"]
    content: str
    thinking: str = optional()
    """The model's reasoning."""
    tool_calls: list[OllamaCall] = optional()


class OllamaRankedToken(ResponseModel):
    """A token and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


class OllamaTokenLogprob(OllamaRankedToken):
    """A token of the answer, and the likeliest tokens at its place."""

    top_logprobs: list[OllamaRankedToken]


class _Part(ResponseModel):
    model: str
    """The model's name, as the request gives it."""
    created_at: str
    """When the request came; the same in all lines of a stream."""
    done: bool
    """True in the last line, and in a whole answer."""
    logprobs: list[OllamaTokenLogprob] = optional()
    done_reason: Literal["stop", "length", "load", "cancelled", "deadline"] = optional()
    """Why the answer ended. `load`: the request had no prompt. The last two are Penstock's own."""
    total_duration: int = optional()
    """Nanoseconds from the request to the end. Only the last line has this and the next fields."""
    load_duration: int = optional()
    """Nanoseconds in the queue."""
    prompt_eval_count: int = optional()
    """Tokens of the prompt."""
    prompt_eval_duration: int = optional()
    """Nanoseconds to the first token."""
    eval_count: int = optional()
    """Tokens of the answer."""
    eval_duration: int = optional()
    """Nanoseconds from the first token to the end."""
    ignored: list[str] = optional()
    """Fields that were left out or changed, if that was not known when the response began."""


class OllamaChatAnswer(_Part):
    """An answer to a conversation, whole or a part of it."""

    message: OllamaMessage


class OllamaGenerateAnswer(_Part):
    """An answer to a prompt, whole or a part of it."""

    response: str
    thinking: str = optional()
    """The model's reasoning."""


class OllamaError(ResponseModel):
    """An error of Ollama's API. In a stream it is the last line."""

    error: str
    """A sentence that says what was wrong and what to do."""
    code: str
    """An error code. An engine may also report codes of its own. Only Penstock sends it."""
    retry_safe: bool
    """True if you may send the same request again, perhaps later. Only Penstock sends it."""


class OllamaChatLine(RootModel[OllamaChatAnswer | OllamaError]):
    """One line of a streamed answer to a conversation."""

    model_config = {"defer_build": True}


class OllamaGenerateLine(RootModel[OllamaGenerateAnswer | OllamaError]):
    """One line of a streamed answer to a prompt."""

    model_config = {"defer_build": True}


class OllamaVersion(ResponseModel):
    """The version of Ollama whose API this is."""

    version: str


class OllamaDetails(ResponseModel):
    """What is known of a model's file; empty if it is not known."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(ResponseModel):
    """A model in a list."""

    name: str
    model: str
    modified_at: str
    """When the server started."""
    size: int
    """The size of the weights in bytes; 0 if it is not known."""
    digest: str
    """A digest of the model's name, not of its file."""
    details: OllamaDetails


class OllamaModels(ResponseModel):
    """The names of the served model."""

    models: list[OllamaModel]


class OllamaRunningModel(OllamaModel):
    """A loaded model."""

    expires_at: str
    """The model stays loaded for ever."""
    size_vram: int
    """Always 0: the server does not know it."""
    context_length: int
    """The context of each request, in tokens."""


class OllamaRunningModels(ResponseModel):
    """The loaded models: the served one, or none while it is loading."""

    models: list[OllamaRunningModel]


class OllamaModelCard(ResponseModel):
    """The description of the served model."""

    modelfile: str
    parameters: str
    """The model's own sampling."""
    template: str
    """The chat template, in Jinja."""
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[Literal["completion", "tools", "thinking"]]
    modified_at: str


class OllamaStatus(ResponseModel):
    """The progress of a download. There is nothing to download."""

    status: str


_PROBLEMS = GENERATION - {"invalid_grammar"} | {"model_not_found"}
_BODY = {
    *("bad_request", "client_gone", "invalid_gzip", "body_timeout", "body_too_large"),
    *("unsupported_media_type", "invalid_utf8", "invalid_json", "not_an_object", "too_deep"),
    *("duplicate_name", "too_many_values", "too_many_names", "number_too_long", "bodies_full"),
    *("invalid_unicode", "unknown_field", "invalid_type", "invalid_value", "too_long", "draining"),
    "model_not_found",
}
_IGNORED = ["X-Penstock-Ignored"]
_NAMED = {"model": "rill"}
# Lines of JSON have no comments, so they tell no statuses.
_HEADERS = [each for each in OUR_HEADERS if each is not STATUS_HEADER]


def _list(meaning: str, model: type[ResponseModel]) -> Operation:
    return Operation(answers={200: Answer(meaning, {JSON: model})})


DESCRIPTION = Description(
    tag="ollama",
    about="Ollama's API, for Ollama's own clients.",
    error=OllamaError,
    operations={
        "ollama_chat": Operation(
            answers=generation(OllamaChatAnswer, OllamaChatLine, NDJSON),
            parameters=_HEADERS,
            example={**_NAMED, "messages": [{"role": "user", "content": "Tell me a story."}]},
            problems=_PROBLEMS,
        ),
        "ollama_generate": Operation(
            answers=generation(OllamaGenerateAnswer, OllamaGenerateLine, NDJSON),
            parameters=_HEADERS,
            example={**_NAMED, "prompt": "Tell me a story."},
            problems=_PROBLEMS,
        ),
        "ollama_version": _list("The version.", OllamaVersion),
        "ollama_tags": _list("The names.", OllamaModels),
        "ollama_running": _list("The loaded models.", OllamaRunningModels),
        "ollama_show": Operation(
            answers={200: Answer("The description.", {JSON: OllamaModelCard}, headers=_IGNORED)},
            example=_NAMED,
            problems=_BODY | {"engine_loading"},
        ),
        "ollama_pull": Operation(
            answers={
                200: Answer(
                    "The model is there.",
                    {JSON: OllamaStatus, NDJSON: OllamaStatus},
                    headers=_IGNORED,
                )
            },
            example=_NAMED,
            problems=_BODY,
        ),
    },
)
