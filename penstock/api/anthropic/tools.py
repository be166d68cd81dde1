"""The tools of a request: `tools` and `tool_choice`.

In: Anthropic's objects. Out: the fields of `Request` with the tools that the model may call. Tools
whose definition only Anthropic's models and servers know are left out.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, ValidationInfo

from penstock.api.anthropic.blocks import CacheControl
from penstock.api.fields import Strict, left_out_as, misplaced
from penstock.api.tolerance import notes_of
from penstock.api.tools import MAX_TOOLS, Schema, ToolName, shown_function, shown_tools


class ClientTool(Strict):
    """A tool that the client runs, and the JSON schema of its input.

    The input satisfies the schema. If the engine cannot bind all of it, a `strict` tool is refused,
    and the schema of another tool is relaxed. The last five fields change nothing, and are noted.
    """

    name: ToolName
    input_schema: Schema
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Annotated[CacheControl | None, left_out_as("tools[].cache_control")] = None
    allowed_callers: Annotated[list[str] | None, left_out_as("tools[].allowed_callers")] = None
    defer_loading: Annotated[bool | None, left_out_as("tools[].defer_loading")] = None
    eager_input_streaming: Annotated[bool | None, left_out_as("tools[].eager_input_streaming")] = (
        None
    )
    input_examples: Annotated[
        list[dict[str, JsonValue]] | None, left_out_as("tools[].input_examples")
    ] = None


def _without_hosted(tools: object, info: ValidationInfo) -> object:
    """Leave out the tools with a type of Anthropic's, and note their types."""
    if not isinstance(tools, list):
        return tools
    notes = notes_of(info.context)
    kept = []
    for number, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind not in ("", "custom"):
            refusal = misplaced(
                f"{number}.type",
                "Only Anthropic's own server has this tool. Define a tool of your own with an"
                " input_schema.",
                "literal_error",
            )
            notes.ignore_or(refusal, f"tools[].{kind}")
        else:
            kept.append(tool)
    return kept


ClientTools = Annotated[
    list[ClientTool], Field(max_length=MAX_TOOLS), BeforeValidator(_without_hosted)
]


class AnyOrNoTool(Strict):
    """Whether the model may, must or must not call a tool."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class OneTool(Strict):
    """The tool that the model must call."""

    type: Literal["tool"]
    name: ToolName
    disable_parallel_tool_use: bool | None = None


ToolChoice = Annotated[AnyOrNoTool | OneTool, Field(discriminator="type")]


def check_tools(tools: Sequence[ClientTool] | None, choice: ToolChoice | None) -> None:
    """Raise PydanticCustomError unless names are unique and the chosen tool exists."""
    names = {tool.name for tool in tools or ()}
    if len(names) < len(tools or ()):
        raise misplaced("tools", "Give each tool its own name.")
    if isinstance(choice, OneTool) and choice.name not in names:
        raise misplaced("tool_choice", "Name a tool that is listed in tools.")
    if choice is not None and choice.type == "any" and not names:
        raise misplaced("tool_choice", "Give tools that the model may call.")


def tool_fields(
    tools: Sequence[ClientTool] | None, choice: ToolChoice | None, *, strict: bool
) -> dict[str, Any]:
    """Return the fields of `Request`. The model sees only the tools that it may call."""
    if not tools or (choice is not None and choice.type == "none"):
        return {}
    named = choice.name if isinstance(choice, OneTool) else None
    shown = [
        shown_function(
            tool.name, tool.description, tool.input_schema, strict=bool(tool.strict or strict)
        )
        for tool in tools
        if named in (None, tool.name)
    ]
    is_parallel = choice is None or not choice.disable_parallel_tool_use
    must_call = choice is not None and choice.type in ("any", "tool")
    return shown_tools(shown, required=must_call, parallel=is_parallel)
