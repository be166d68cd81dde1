"""The description of Anthropic's API for `/openapi.json`."""

from typing import Any, Literal

from pydantic import RootModel

from penstock.api.description import (
    GENERATION,
    JOINING,
    JSON,
    OUR_HEADERS,
    Answer,
    Description,
    Operation,
    ResponseModel,
    generation,
    optional,
)

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]
FinishReason = Literal["cancelled", "deadline"]


class MessageTokensDetails(ResponseModel):
    """Parts of the answer's tokens."""

    thinking_tokens: int
    """Tokens of the model's reasoning."""


class MessageUsage(ResponseModel):
    """Token counts, by the engine."""

    input_tokens: int
    """Tokens of the prompt that the engine did not have in its cache."""
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    """Tokens of the prompt that the engine had in its cache."""
    output_tokens: int
    """Tokens of the answer; 0 when a stream begins."""
    output_tokens_details: MessageTokensDetails


class TextAnswerBlock(ResponseModel):
    """Text of the answer."""

    type: Literal["text"]
    text: str


class ThinkingAnswerBlock(ResponseModel):
    """The model's reasoning. Send the block back as it is."""

    type: Literal["thinking"]
    thinking: str
    """Empty if the request asked for the display `omitted`."""
    signature: str


class ToolUseAnswerBlock(ResponseModel):
    """A tool call that the model makes."""

    type: Literal["tool_use"]
    id: str
    """The call's id."""
    name: str
    """The tool's name."""
    input: dict[str, Any]
    """The tool's input. If the answer ended within it, as much as is complete."""


AnswerBlock = TextAnswerBlock | ThinkingAnswerBlock | ToolUseAnswerBlock


class AnswerMessage(ResponseModel):
    """A whole answer, or the beginning of a streamed one."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    """The model's name, as the request gives it."""
    content: list[AnswerBlock]
    """The blocks of the answer; none when a stream begins."""
    stop_reason: StopReason | None
    """Why the answer ended; null when a stream begins."""
    stop_sequence: str | None
    """The stop sequence that ended the answer, if one did."""
    finish_reason: FinishReason = optional()
    """Only if the answer was cancelled, or its time was up. Only Penstock sends it."""
    usage: MessageUsage


class MessageStart(ResponseModel):
    """The beginning of a streamed answer."""

    type: Literal["message_start"]
    message: AnswerMessage


class Ping(ResponseModel):
    """A sign of life."""

    type: Literal["ping"]


class ContentBlockStart(ResponseModel):
    """The beginning of a block, whose text is empty."""

    type: Literal["content_block_start"]
    index: int
    """The number of the block."""
    content_block: AnswerBlock


class TextDelta(ResponseModel):
    """Text to append to the block."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(ResponseModel):
    """Reasoning to append to the block."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(ResponseModel):
    """The signature of the block, at its end."""

    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(ResponseModel):
    """Text to append to the tool's input, which is JSON when the block is complete."""

    type: Literal["input_json_delta"]
    partial_json: str


class ContentBlockDelta(ResponseModel):
    """A part of a block."""

    type: Literal["content_block_delta"]
    index: int
    """The number of the block."""
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(ResponseModel):
    """The end of a block."""

    type: Literal["content_block_stop"]
    index: int
    """The number of the block."""


class MessageEnding(ResponseModel):
    """How the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None
    """The stop sequence that ended the answer, if one did."""
    finish_reason: FinishReason = optional()
    """Only if the answer was cancelled, or its time was up. Only Penstock sends it."""


class MessageDelta(ResponseModel):
    """How the answer ended, and its usage."""

    type: Literal["message_delta"]
    delta: MessageEnding
    usage: MessageUsage
    ignored: list[str] = optional()
    """Fields that were left out or changed, if that was not known when the response began."""


class MessageStop(ResponseModel):
    """The end of a stream."""

    type: Literal["message_stop"]


class MessageErrorObject(ResponseModel):
    """An error."""

    type: str
    """The class of the error, such as `invalid_request_error` or `overloaded_error`."""
    message: str
    """A sentence that says what was wrong and what to do."""
    code: str
    """An error code. An engine may also report codes of its own. Only Penstock sends it."""
    param: str = optional()
    """The field that the error is about, if it is about one. Only Penstock sends it."""
    retry_safe: bool
    """True if you may send the same request again, perhaps later. Only Penstock sends it."""


class MessageError(ResponseModel):
    """An error of Anthropic's API. In a stream it takes the place of the rest."""

    type: Literal["error"]
    error: MessageErrorObject
    request_id: str = optional()
    """The request's id. Not in a stream, whose head has it."""


class MessageEvent(
    RootModel[
        MessageStart
        | Ping
        | ContentBlockStart
        | ContentBlockDelta
        | ContentBlockStop
        | MessageDelta
        | MessageStop
        | MessageError
    ]
):
    """The data of one event of a message's stream. The event's name is its `type`."""

    model_config = {"defer_build": True}


class TokenCount(ResponseModel):
    """The number of a conversation's tokens."""

    input_tokens: int


_EXAMPLE = {"model": "rill", "messages": [{"role": "user", "content": "Tell me a story."}]}

DESCRIPTION = Description(
    tag="anthropic",
    about="Anthropic's Messages API, for Anthropic's own clients.",
    error=MessageError,
    operations={
        "create_message": Operation(
            answers=generation(AnswerMessage, MessageEvent),
            parameters=OUR_HEADERS,
            example={**_EXAMPLE, "max_tokens": 100},
            problems=GENERATION - {"invalid_grammar"} | {"model_not_found"},
        ),
        "count_message_tokens": Operation(
            answers={
                200: Answer(
                    "The number of tokens.", {JSON: TokenCount}, headers=["X-Penstock-Ignored"]
                )
            },
            example=_EXAMPLE,
            problems=GENERATION - JOINING - {"invalid_grammar"} | {"model_not_found"},
        ),
    },
)
