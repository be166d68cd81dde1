"""The description of OpenAI's API for `/openapi.json`."""

from typing import Literal

from pydantic import RootModel

from penstock.api.description import (
    GENERATION,
    OUR_HEADERS,
    Description,
    Operation,
    ResponseModel,
    generation,
    optional,
)

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]
StopReason = Literal["cancelled", "deadline"]


class PromptTokensDetails(ResponseModel):
    """Parts of the prompts' tokens."""

    cached_tokens: int
    """Tokens that the engine had in its cache."""


class CompletionUsage(ResponseModel):
    """Token counts. Each prompt counts once, and every choice counts."""

    prompt_tokens: int
    """Tokens of the prompts."""
    completion_tokens: int
    """Tokens of the answers."""
    total_tokens: int
    """Tokens of the prompts and the answers together."""
    prompt_tokens_details: PromptTokensDetails


class CompletionTokensDetails(ResponseModel):
    """Parts of the answer's tokens."""

    reasoning_tokens: int
    """Tokens of the model's reasoning."""


class ChatUsage(CompletionUsage):
    """Token counts of a chat."""

    completion_tokens_details: CompletionTokensDetails


class CalledFunctionPart(ResponseModel):
    """A part of a call's function."""

    name: str = optional()
    """The function's name. Only in the first part of a call."""
    arguments: str
    """Text to append to the arguments, which are JSON when the call is complete."""


class ToolCallPart(ResponseModel):
    """A part of a tool call."""

    index: int
    """The number of the call in this message, counted from 0."""
    id: str = optional()
    """The call's id. Only in the first part of a call."""
    type: Literal["function"] = optional()
    """Only in the first part of a call."""
    function: CalledFunctionPart


class ChatDelta(ResponseModel):
    """The fields that a chunk adds to a message."""

    role: Literal["assistant"] = optional()
    """Only in the first chunk of a choice."""
    content: str | None = optional()
    """Text to append to the answer."""
    reasoning_content: str = optional()
    """Text to append to the model's reasoning."""
    tool_calls: list[ToolCallPart] = optional()
    """Parts of tool calls."""
    function_call: CalledFunctionPart = optional()
    """A part of the call, if the request has `functions`."""


class LikelyToken(ResponseModel):
    """A token and its log probability."""

    token: str
    """The token's text."""
    logprob: float
    """The natural logarithm of the token's probability."""
    bytes: list[int]
    """The token's bytes in UTF-8."""


class ChosenToken(LikelyToken):
    """A generated token, and the likeliest tokens at its position."""

    top_logprobs: list[LikelyToken]
    """As many of the likeliest tokens as the request asked for."""


class ChatLogprobs(ResponseModel):
    """The log probabilities of a chat's tokens."""

    content: list[ChosenToken]
    """The tokens of the answer."""
    refusal: None


class ChatChunkChoice(ResponseModel):
    """What a chunk says about one choice."""

    index: int
    """The number of the choice."""
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    """Null unless the request asked for log probabilities."""
    finish_reason: FinishReason | None
    """Why the choice ended; null before its last chunk."""
    stop_reason: StopReason = optional()
    """Only if the answer was cancelled, or its time was up."""
    token_ids: list[int] | None = optional()
    """The ids of the tokens, if the request asks for ids. Null if the engine does not name them."""


class ChatChunk(ResponseModel):
    """A chunk of a chat's stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[ChatChunkChoice]
    """Empty in the chunk that reports the usage."""
    prompt_token_ids: list[int] = optional()
    """The ids of the prompt's tokens. In the first chunk, if the request asks for ids."""
    usage: ChatUsage | None = optional()
    """Only if `stream_options` asks for it. Null in the chunks that do not report it."""
    ignored: list[str] = optional()
    """In the last chunk: fields that were left out or changed, if that was found out late."""


class CalledFunctionAnswer(ResponseModel):
    """The function that the model calls."""

    name: str
    """The function's name."""
    arguments: str
    """The arguments, as JSON."""


class ToolCallAnswer(ResponseModel):
    """A tool call that the model makes."""

    id: str
    """The call's id."""
    type: Literal["function"]
    function: CalledFunctionAnswer


class ChatMessage(ResponseModel):
    """An answer of the model."""

    role: Literal["assistant"]
    content: str | None
    """The answer's text; null if there are only tool calls."""
    refusal: None
    reasoning_content: str = optional()
    """The model's reasoning, if there is any."""
    tool_calls: list[ToolCallAnswer] = optional()
    """The tool calls, if there are any."""
    function_call: CalledFunctionAnswer = optional()
    """The call, if there is one and the request has `functions`."""


class ChatChoice(ResponseModel):
    """One answer to the conversation."""

    index: int
    """The number of the choice."""
    message: ChatMessage
    logprobs: ChatLogprobs | None
    """Null unless the request asked for log probabilities."""
    finish_reason: FinishReason
    """Why the choice ended."""
    stop_reason: StopReason = optional()
    """Only if the answer was cancelled, or its time was up."""
    token_ids: list[int] | None = optional()
    """The ids of the tokens, if the request asks for ids. Null if the engine does not name them."""


class PromptToken(ResponseModel):
    """A token that is possible at a place of the prompt."""

    logprob: float
    """The natural logarithm of the token's probability."""
    rank: int
    """The token's place among the likeliest tokens, from 1."""
    decoded_token: str
    """The token's text."""


class Chat(ResponseModel):
    """A whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    prompt_token_ids: list[int] = optional()
    """The ids of the prompt's tokens, if the request asks for ids."""
    prompt_logprobs: list[dict[str, PromptToken] | None] = optional()
    """For each token of the prompt, the possible tokens by their ids, if the request asks for
    them. Null for the first token."""


class CompletionLogprobs(ResponseModel):
    """The log probabilities of a completion's tokens, in lists of the same length."""

    tokens: list[str]
    """The tokens' texts."""
    token_logprobs: list[float | None]
    """The tokens' log probabilities; null for the first token of an echoed prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens at each position, with their log probabilities."""
    text_offset: list[int]
    """Where each token begins in the choice's text, in characters."""


class CompletionChoice(ResponseModel):
    """One continuation of a prompt."""

    index: int
    """The number of the choice. The choices of a prompt have consecutive numbers."""
    text: str
    """The text, or the part of it that a chunk adds."""
    logprobs: CompletionLogprobs | None
    """Null unless the request asked for log probabilities."""
    finish_reason: FinishReason
    """Why the choice ended."""
    stop_reason: StopReason = optional()
    """Only if the answer was cancelled, or its time was up."""
    token_ids: list[int] | None = optional()
    """The ids of the tokens, if the request asks for ids. Null if the engine does not name them."""
    prompt_token_ids: list[int] = optional()
    """The ids of the prompt's tokens, if the request asks for ids. In a stream, in the first
    chunk."""
    prompt_logprobs: list[dict[str, PromptToken] | None] = optional()
    """For each token of the prompt, the possible tokens by their ids, if the request asks for
    them. Null for the first token."""


class CompletionChunkChoice(CompletionChoice):
    """What a chunk says about one choice."""

    finish_reason: FinishReason | None  # type: ignore[assignment] # wider: it is null at first
    """Why the choice ended; null before its last chunk."""


class Completion(ResponseModel):
    """A whole answer to a completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class CompletionChunk(ResponseModel):
    """A chunk of a completion's stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[CompletionChunkChoice]
    """Empty in the chunk that reports the usage."""
    usage: CompletionUsage | None = optional()
    """Only if `stream_options` asks for it. Null in the chunks that do not report it."""
    ignored: list[str] = optional()
    """In the last chunk: fields that were left out or changed, if that was found out late."""


class ErrorObject(ResponseModel):
    """An error."""

    message: str
    """A sentence that says what was wrong and what to do."""
    type: str
    """The class of the error, such as `invalid_request_error` or `server_error`."""
    param: str | None
    """The field that the error is about, if it is about one."""
    code: str
    """An error code. An engine may also report codes of its own."""
    retry_safe: bool
    """True if you may send the same request again, perhaps later. Only Penstock sends it."""


class ErrorResponse(ResponseModel):
    """An error of OpenAI's API. In a stream it takes the place of a chunk."""

    error: ErrorObject


_EVENT = "The data of one event of a {}'s stream. After the last event, the data is `[DONE]`."


class ChatEvent(RootModel[ChatChunk | ErrorResponse | Literal["[DONE]"]]):
    __doc__ = _EVENT.format("chat")
    model_config = {"defer_build": True}


class CompletionEvent(RootModel[CompletionChunk | ErrorResponse | Literal["[DONE]"]]):
    __doc__ = _EVENT.format("completion")
    model_config = {"defer_build": True}


DESCRIPTION = Description(
    tag="openai",
    about="OpenAI's API, for OpenAI's own clients.",
    error=ErrorResponse,
    operations={
        "create_chat_completion": Operation(
            answers=generation(Chat, ChatEvent),
            parameters=OUR_HEADERS,
            example={"messages": [{"role": "user", "content": "Tell me a story."}]},
            problems=GENERATION | {"model_not_found"},
        ),
        "create_completion": Operation(
            answers=generation(Completion, CompletionEvent),
            parameters=OUR_HEADERS,
            example={"prompt": "Once upon a time", "max_tokens": 20},
            problems=GENERATION
            - {"invalid_schema", "invalid_tools", "no_chat_template", "schema_lost"}
            | {"model_not_found"},
        ),
    },
)
