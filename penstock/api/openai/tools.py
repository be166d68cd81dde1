"""The tools of a chat: `tools`, `tool_choice` and `parallel_tool_calls`.

In: OpenAI's objects. Out: the fields of `Request` with the tools that the model may call. This
module does not know how a model calls a tool.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.api.fields import Strict, misplaced
from penstock.api.tools import MAX_TOOLS, Schema, ToolName, shown_function, shown_tools


class Function(Strict):
    """A function and the JSON schema of its arguments.

    The arguments satisfy the schema. If the engine cannot bind all of it, a `strict` function is
    refused, and the schema of another function is relaxed.
    """

    name: ToolName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool. Only functions are supported."""

    type: Literal["function"]
    function: Function

    def shown(self, *, strict: bool = False) -> dict[str, Any]:
        """Return the tool as chat templates expect it, with every field that they may use.

        With `strict` every function is strict.
        """
        given = self.function
        return shown_function(
            given.name, given.description, given.parameters, strict=bool(given.strict or strict)
        )


class FunctionName(Strict):
    """The name of a function."""

    name: ToolName


class NamedTool(Strict):
    """The name of a tool that the model must call, or may call."""

    type: Literal["function"]
    function: FunctionName


class AllowedToolList(Strict):
    """The tools that the model may call, and whether it must call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedTools(Strict):
    """A choice of the tools, and whether the model must call one of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList


Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


def check_tools(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> None:
    """Raise PydanticCustomError unless names are unique and the chosen names exist."""
    names = [tool.function.name for tool in tools or ()]
    if len(set(names)) < len(names):
        raise misplaced("tools", "Give each tool its own name.")
    if not tools and choice not in (None, "none"):
        raise misplaced("tool_choice", "Give tools to use tool_choice.")
    if not set(_chosen_names(choice) or ()) <= set(names):
        raise misplaced("tool_choice", "Name a tool that is listed in tools.")


def tool_fields(
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    parallel: bool | None,
    *,
    strict: bool,
) -> dict[str, Any]:
    """Return the fields of `Request`. The model sees only the tools that it may call."""
    if not tools or choice == "none":
        return {}
    names = _chosen_names(choice)
    shown = [
        tool.shown(strict=strict) for tool in tools if names is None or tool.function.name in names
    ]
    tool_call_required = choice == "required" or isinstance(choice, NamedTool)
    if isinstance(choice, AllowedTools):
        tool_call_required = choice.allowed_tools.mode == "required"
    # A client that names a function expects one call of it.
    is_parallel = parallel is not False and not isinstance(choice, NamedTool)
    return shown_tools(shown, required=tool_call_required, parallel=is_parallel)


def _chosen_names(choice: ToolChoice | None) -> list[str] | None:
    """Return the names of the tools that may be called, None if all may be."""
    if isinstance(choice, NamedTool):
        return [choice.function.name]
    if isinstance(choice, AllowedTools):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return None
