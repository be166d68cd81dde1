"""The turns of a conversation as OpenAI's clients send them, calls of tools and their results among
them.

In: an object of JSON. Out: a `Message` in the words of the system. Not known here: what the model's
template makes of it.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from penstock.api.fields import Strict
from penstock.request import Message, ToolUse


def misplaced(field: str, message: str, kind: str = "misplaced") -> PydanticCustomError:
    """A field that does not go with another; pydantic itself would name none."""
    return PydanticCustomError(kind, message, {"field": field})


ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


def _text_as_part(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class TextPart(Strict):
    """A part of a message; there are no others than text."""

    type: Literal["text"]
    text: str


def _json_object(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise PydanticCustomError("value_error", "It is a string that holds a JSON object.")
    return arguments


class CalledFunction(Strict):
    """What was called, and with which arguments."""

    name: ToolName
    arguments: Annotated[str, AfterValidator(_json_object)]


class CalledTool(Strict):
    """A call that the model has made. `index` is taken from those who send streamed calls back."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatTurn(Strict):
    """One turn of a conversation. What an assistant's turn has beside its content and its calls is
    taken where it is empty, as clients send back what they were sent."""

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
    # vLLM's name for the same.
    reasoning: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> "ChatTurn":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            kind = "string_type" if "content" in self.model_fields_set else "missing"
            raise misplaced("content", "Give its text.", kind)
        if self.tool_calls and self.role != "assistant":
            raise misplaced("tool_calls", "Only an assistant calls tools.")
        if self.role == "tool" and self.tool_call_id is None:
            raise misplaced("tool_call_id", "Name the call that this answers.", "missing")
        if self.role != "tool" and self.tool_call_id is not None:
            raise misplaced("tool_call_id", "It is for the role tool.")
        if self.role != "assistant" and (self.reasoning_content or self.reasoning):
            raise misplaced("reasoning_content", "Only an assistant reasons.")
        return self

    @property
    def has_to_do_with_tools(self) -> bool:
        """It calls some, or answers for one."""
        return self.role == "tool" or bool(self.tool_calls)

    def to_message(self) -> Message:
        """In the words of the system; a developer is what a system is in models' templates."""
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


def check_calls_are_answered_for(turns: list[ChatTurn]) -> None:
    """Each result must be that of a call before it. Raises PydanticCustomError."""
    made: set[str] = set()
    for number, turn in enumerate(turns):
        made |= {call.id for call in turn.tool_calls or ()}
        if turn.tool_call_id is not None and turn.tool_call_id not in made:
            raise misplaced(
                f"messages.{number}.tool_call_id", "No turn before it has a call with this id."
            )
