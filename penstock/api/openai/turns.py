"""The turns of a conversation as OpenAI's clients send them, with tool calls and their results.

In: a JSON object. Out: a `Message` for the engine. With `--strict` a turn has only its own fields,
with their exact types; otherwise `history` reads it. This module does not know how the model's chat
template renders it.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from penstock.api.conversation import refuse_part
from penstock.api.fields import MAX_MESSAGES, Strict, misplaced
from penstock.api.openai.history import is_json_object, read_turns
from penstock.api.tolerance import notes_of
from penstock.api.tools import ToolName
from penstock.request import Message, ToolUse

CallId = Annotated[str, Field(min_length=1, max_length=256)]


def _text_as_part(content: object) -> object:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        for number, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                refuse_part(f"{number}", kind)
    return content


class TextPart(Strict):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


def _json_object(arguments: str) -> str:
    if not is_json_object(arguments):
        raise PydanticCustomError("value_error", "Give a string that contains a JSON object.")
    return arguments


class CalledFunction(Strict):
    """The function that was called, and its arguments as a JSON object in a string."""

    name: ToolName
    arguments: Annotated[str, AfterValidator(_json_object)]


class CalledTool(Strict):
    """A tool call that the model has made.

    `index` is ignored: clients that collect streamed calls send it back.
    """

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatTurn(Strict):
    """One turn of a conversation.

    Clients send an assistant's turn back as they received it, so every other field is ignored.
    With `--strict` other fields are refused, and `refusal`, `audio`, `function_call` and
    `annotations` may be given only empty.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            list[TextPart],
            Field(fail_fast=True),
            BeforeValidator(_text_as_part, json_schema_input_type=str | list[TextPart]),
        ]
        | None
    ) = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None
    # vLLM's name for `reasoning_content`.
    reasoning: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> "ChatTurn":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            kind = "string_type" if "content" in self.model_fields_set else "missing"
            raise misplaced("content", "Give the text of this turn.", kind)
        if self.tool_calls and self.role != "assistant":
            raise misplaced("tool_calls", "Give tool_calls only in an assistant's turn.")
        if self.role == "tool" and self.tool_call_id is None:
            raise misplaced(
                "tool_call_id", "Give the id of the tool call that this turn answers.", "missing"
            )
        if self.role != "tool" and self.tool_call_id is not None:
            raise misplaced("tool_call_id", "Give tool_call_id only in a turn with the role tool.")
        if self.role != "assistant" and (self.reasoning_content or self.reasoning):
            raise misplaced(
                "reasoning_content", "Give reasoning_content only in an assistant's turn."
            )
        return self

    def to_message(self) -> Message:
        """Return the turn for the engine. Chat templates know a developer as the role system."""
        calls = [
            ToolUse(call.id, call.function.name, call.function.arguments)
            for call in self.tool_calls or ()
        ]
        return Message(
            "system" if self.role == "developer" else self.role,
            "".join(part.text for part in self.content or ()),
            self.reasoning_content or self.reasoning or "",
            tuple(calls),
            self.tool_call_id or "",
        )


def _read_messages(
    sent: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> tuple[Message, ...]:
    notes = notes_of(info.context)
    if isinstance(sent, list) and not notes.strict:
        return read_turns(sent, notes)
    if isinstance(sent, list) and len(sent) > MAX_MESSAGES:
        raise PydanticCustomError("too_long", f"Give at most {MAX_MESSAGES} messages.")
    turns: list[ChatTurn] = validate(sent)
    made: set[str] = set()
    for number, turn in enumerate(turns):
        made |= {call.id for call in turn.tool_calls or ()}
        if turn.tool_call_id is not None and turn.tool_call_id not in made:
            raise misplaced(
                f"{number}.tool_call_id", "Give the id of a tool call in an earlier turn."
            )
    return tuple(turn.to_message() for turn in turns)


class _FromTurns:
    """The schema of a conversation: a list of `ChatTurn`s that becomes `Message`s."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        turns = handler.generate_schema(
            Annotated[list[ChatTurn], Field(min_length=1, fail_fast=True)]
        )
        return core_schema.with_info_wrap_validator_function(_read_messages, turns)


Messages = Annotated[tuple[Message, ...], _FromTurns()]
"""A conversation. Its length is bounded by the body's, with `--strict` also by 1,024 turns."""
