"""The turns of a conversation as Ollama's clients send them.

In: a JSON object. Out: a `Message` for the engine. Not known here: how a chat template shows it.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from penstock.api.conversation import Pairing, refusal_of_part
from penstock.api.fields import Strict, left_out_as
from penstock.api.openai.history import is_json_object
from penstock.api.tolerance import Notes, notes_of
from penstock.api.tools import ToolName
from penstock.request import Message, ToolUse

CallId = Annotated[str, Field(max_length=256)]


def _no_images(images: list[Any]) -> list[Any]:
    if images:
        raise PydanticCustomError("unsupported_field", refusal_of_part("image"))
    return images


Images = Annotated[list[Any], AfterValidator(_no_images)]
"""Images, which no engine of this server can show to a model. An empty list is accepted."""


def _as_object(arguments: object, info: ValidationInfo) -> object:
    """Take an object, or its JSON as text. With anything else a call has no arguments."""
    if isinstance(arguments, dict):
        return arguments
    if isinstance(arguments, str) and is_json_object(arguments):
        return json.loads(arguments)
    refusal = PydanticCustomError("dict_type", "Give the arguments as an object.")
    notes_of(info.context).ignore_or(refusal, "messages[].tool_calls[].function.arguments")
    return {}


class OllamaSentFunction(Strict):
    """The function that was called, and its arguments. `index` changes nothing."""

    name: ToolName
    arguments: Annotated[
        dict[str, Any], BeforeValidator(_as_object, json_schema_input_type=dict[str, Any] | str)
    ] = Field(default_factory=dict)
    index: int | None = None
    description: Annotated[
        str | None, left_out_as("messages[].tool_calls[].function.description")
    ] = None


class OllamaSentCall(Strict):
    """A tool call that the model has made. Older clients send no `id`."""

    function: OllamaSentFunction
    id: CallId | None = None
    type: Literal["function"] | None = None


class OllamaTurn(Strict):
    """One turn of a conversation. A turn with the role `tool` has the result of a call.

    Results answer the calls before them: by id, by `tool_name`, or in order. In other turns
    `tool_name` changes nothing.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaSentCall] | None = None
    tool_call_id: CallId | None = None
    tool_name: str | None = None
    images: Images | None = None


def messages_of(turns: Sequence[OllamaTurn], notes: Notes) -> tuple[Message, ...]:
    """Return the conversation for the engine. Calls and results without an id get one."""
    if any(turn.tool_name and turn.role != "tool" for turn in turns):
        notes.ignore("messages[].tool_name")
    pairing = Pairing()
    return tuple(
        pairing.paired(_message_of(turn, number), number, turn.tool_name or "")
        for number, turn in enumerate(turns)
    )


def _message_of(turn: OllamaTurn, number: int) -> Message:
    calls = tuple(
        ToolUse(
            call.id or f"call_{number}_{place}",
            call.function.name,
            json.dumps(call.function.arguments, ensure_ascii=False),
        )
        for place, call in enumerate(turn.tool_calls or ())
    )
    return Message(
        "system" if turn.role == "developer" else turn.role,  # as chat templates know it
        turn.content or "",
        turn.thinking or "",
        calls,
        turn.tool_call_id or "",
    )
