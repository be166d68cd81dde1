"""The description of llama-server's and vLLM's own routes for `/openapi.json`."""

from typing import Any, Literal

from pydantic import RootModel

from penstock.api.description import (
    GENERATION,
    JSON,
    OUR_HEADERS,
    Answer,
    Description,
    Operation,
    ResponseModel,
    generation,
    optional,
)
from penstock.api.openai.description import ErrorResponse


class LlamaTimings(ResponseModel):
    """Counts of tokens, and times in milliseconds."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float | None


class LlamaCompletion(ResponseModel):
    """A part of an answer, or the whole answer. Only the last event has the last fields."""

    index: Literal[0]
    content: str
    tokens: list[int]
    """Always empty."""
    stop: bool
    """True in the last event, and in a whole answer."""
    id_slot: Literal[-1]
    model: str = optional()
    tokens_predicted: int = optional()
    tokens_evaluated: int = optional()
    tokens_cached: int = optional()
    truncated: Literal[False] = optional()
    stop_type: Literal["eos", "limit", "word", "none"] = optional()
    """Why the answer ended. `none`: `finish_reason` says why."""
    stopping_word: str = optional()
    timings: LlamaTimings = optional()
    finish_reason: Literal["cancelled", "deadline"] = optional()
    """Only Penstock sends it."""
    ignored: list[str] = optional()
    """Fields that were left out or changed, if that was not known when the response began."""


class LlamaCompletionEvent(RootModel[LlamaCompletion | ErrorResponse]):
    """The data of one event of a stream."""

    model_config = {"defer_build": True}


class TokenIds(ResponseModel):
    """The ids of a text's tokens."""

    tokens: list[int]
    count: int
    max_model_len: int
    """The model's context, in tokens."""


class TokenText(ResponseModel):
    """The text of tokens, under llama-server's and vLLM's name."""

    content: str
    prompt: str


class RenderedPrompt(ResponseModel):
    """A conversation as the model sees it."""

    prompt: str


class ServerVersion(ResponseModel):
    """The version of Penstock."""

    version: str


class LlamaProps(ResponseModel):
    """What llama-server tells about its model."""

    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    chat_template: str
    modalities: dict[str, bool]
    build_info: str
    penstock: dict[str, Any]


_READING = GENERATION | {"model_not_found"}
_IGNORED = ["X-Penstock-Ignored"]
_HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def _reading(meaning: str, model: type[ResponseModel], example: dict[str, Any]) -> Operation:
    answer = Answer(meaning, {JSON: model}, headers=_IGNORED)
    return Operation(answers={200: answer}, example=example, problems=_READING)


DESCRIPTION = Description(
    tag="neighbors",
    about="Routes of llama-server and vLLM that OpenAI's API does not have.",
    error=ErrorResponse,
    operations={
        "complete_as_llama_server": Operation(
            answers=generation(LlamaCompletion, LlamaCompletionEvent),
            parameters=OUR_HEADERS,
            example={"prompt": "Once upon a time", "n_predict": 20},
            problems=_READING,
        ),
        "infill_as_llama_server": Operation(
            answers=generation(LlamaCompletion, LlamaCompletionEvent),
            parameters=OUR_HEADERS,
            example={"input_prefix": "def add(a, b):\n    ", "input_suffix": "\n", "n_predict": 20},
            problems=_READING,
        ),
        "tokenize": _reading("The tokens.", TokenIds, {"content": "Once upon a time"}),
        "detokenize": _reading("The text.", TokenText, {"tokens": [1, 2, 3]}),
        "apply_template": _reading("The prompt.", RenderedPrompt, _HELLO),
        "get_props": Operation(
            answers={200: Answer("The model.", {JSON: LlamaProps})}, problems={"engine_loading"}
        ),
        "get_version": Operation(answers={200: Answer("The version.", {JSON: ServerVersion})}),
    },
)
