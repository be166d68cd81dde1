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
    ModelWrapValidatorHandler,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from penstock.api.fields import MAX_MESSAGES, Strict
from penstock.api.openai.history import (
    is_json_object,
    link_results,
    misplaced,
    read_turn,
    refuse_part,
)
from penstock.api.tolerance import notes_of
from penstock.request import Message, ToolUse

__all__ = ["ChatTurn", "Messages", "ToolName", "misplaced"]

ToolName = Annotated[str, Field(pattern=r'^[^\x00-\x1f"\\\x7f]{1,256}$')]
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
            BeforeValidator(_text_as_part, json_schema_input_type=str | list[TextPart]),
        ]
        | None
    ) = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=128)] | None = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None
    # vLLM's name for `reasoning_content`.
    reasoning: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _as_sent(
        cls, sent: object, validate: ModelWrapValidatorHandler["ChatTurn"], info: ValidationInfo
    ) -> "ChatTurn":
        notes = notes_of(info.context)
        if notes.strict or not isinstance(sent, dict):
            turn = validate(sent)
            turn._check_fields()
            return turn
        fields = read_turn(sent, notes)
        calls = [
            CalledTool.model_construct(
                id=call["id"],
                function=CalledFunction.model_construct(
                    name=call["name"], arguments=call["arguments"]
                ),
            )
            for call in fields.pop("tool_calls", None) or ()
        ]
        parts = [TextPart.model_construct(type="text", text=fields.pop("content"))]
        return cls.model_construct(**fields, content=parts, tool_calls=calls or None)

    def _check_fields(self) -> None:
        """Raise PydanticCustomError unless the fields fit the role."""
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


def _check_number(sent: object, info: ValidationInfo) -> object:
    too_many = isinstance(sent, list) and len(sent) > MAX_MESSAGES
    if too_many and notes_of(info.context).strict:
        raise PydanticCustomError("too_long", f"Give at most {MAX_MESSAGES} messages.")
    return sent


def _link_or_check(turns: list[ChatTurn], info: ValidationInfo) -> list[ChatTurn]:
    if not notes_of(info.context).strict:
        link_results(turns)
        return turns
    made: set[str] = set()
    for number, turn in enumerate(turns):
        made |= {call.id for call in turn.tool_calls or ()}
        if turn.tool_call_id is not None and turn.tool_call_id not in made:
            raise misplaced(
                f"{number}.tool_call_id", "Give the id of a tool call in an earlier turn."
            )
    return turns


Messages = Annotated[
    list[ChatTurn],
    Field(min_length=1),
    BeforeValidator(_check_number, json_schema_input_type=list[ChatTurn]),
    AfterValidator(_link_or_check),
]
"""A conversation. Its length is bounded by the body's, with `--strict` also by 1,024 turns."""
