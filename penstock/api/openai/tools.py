"""The tools that a chat may call, and how it must: `tools`, `tool_choice`, `parallel_tool_calls`.

In: OpenAI's objects. Out: the fields of `Request` that say the same, of the tools that the model is
to see. Not known here: how a model calls a tool.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from penstock.api.fields import Strict
from penstock.api.openai.turns import ToolName, misplaced

MAX_TOOLS = 128
MAX_SCHEMA_CHARACTERS = 65_536


def bounded_schema(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The schema. Raises PydanticCustomError where it is too long."""
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
        raise PydanticCustomError(
            "invalid_schema", f"It is longer than {MAX_SCHEMA_CHARACTERS} characters."
        )
    return schema


Schema = Annotated[dict[str, JsonValue], AfterValidator(bounded_schema)]


class Function(Strict):
    """A function with the schema of its arguments, which is kept to whether `strict` or not."""

    name: ToolName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool; there are no others than functions."""

    type: Literal["function"]
    function: Function

    def shown(self) -> dict[str, Any]:
        """As templates know it: with everything that they may look at."""
        function = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": self.function.parameters or {"type": "object", "properties": {}},
        }
        return {"type": "function", "function": function}


class FunctionName(Strict):
    """The name of a function."""

    name: ToolName


class NamedTool(Strict):
    """Names a tool."""

    type: Literal["function"]
    function: FunctionName


class AllowedToolList(Strict):
    """The tools that the model may call, and whether it must call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(Strict):
    """Some of the tools, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList


Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


def check_tools(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> None:
    """Names must differ, and a choice be among them. Raises PydanticCustomError."""
    names = [tool.function.name for tool in tools or ()]
    if len(set(names)) < len(names):
        raise misplaced("tools", "Two of them have the same name.")
    if not tools and choice not in (None, "none"):
        raise misplaced("tool_choice", "It needs tools.")
    if not set(_chosen_names(choice) or ()) <= set(names):
        raise misplaced("tool_choice", "There is no tool of this name.")


def tool_fields(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> dict[str, Any]:
    """The fields of `Request`. The model is shown the tools that it may call, and no others."""
    if not tools or choice == "none":
        return {}
    names = _chosen_names(choice)
    shown = [tool.shown() for tool in tools if names is None or tool.function.name in names]
    tool_call_required = choice == "required" or isinstance(choice, NamedTool)
    if isinstance(choice, AllowedTools):
        tool_call_required = choice.allowed_tools.mode == "required"
    return {
        "tools": json.dumps(shown, ensure_ascii=False),
        "tool_call_required": tool_call_required,
        # Who names one function wants one call of it.
        "parallel_calls": parallel is not False and not isinstance(choice, NamedTool),
    }


def _chosen_names(choice: ToolChoice | None) -> list[str] | None:
    """None where any will do."""
    if isinstance(choice, NamedTool):
        return [choice.function.name]
    if isinstance(choice, AllowedTools):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return None
