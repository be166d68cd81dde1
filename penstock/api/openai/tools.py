"""The tools of a chat: `tools`, `tool_choice` and `parallel_tool_calls`.

In: OpenAI's objects, also those of its first form, `functions` and `function_call`; choices also in
the forms of Mistral, Anthropic and OpenAI's Responses. Out: the fields of `Request` with the tools
that the model may call. Hosted tools, which only run on their provider's servers, are left out and
noted. This module does not know how a model calls a tool.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from penstock.api.fields import Strict, misplaced
from penstock.api.tolerance import Notes, notes_of
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


_WORDS = ("none", "auto", "required")


def _without_hosted(sent: object, info: ValidationInfo) -> object:
    """Return the tools without hosted ones (`web_search`), or None if no tool is left.

    A function may come without its type, as vLLM takes it.
    """
    notes = notes_of(info.context)
    if not isinstance(sent, list) or not sent or notes.strict:
        return sent
    kept = []
    for tool in sent:
        kind = (tool.get("type") or "function") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind not in ("function", "custom"):
            notes.ignore(f"tools[].{kind}")
        else:
            kept.append({**tool, "type": kind} if isinstance(tool, dict) else tool)
    return kept or None


def _choice_of(sent: object, info: ValidationInfo) -> object:
    """Return a choice in OpenAI's form for chats. Raises PydanticCustomError if it is none."""
    notes = notes_of(info.context)
    if not notes.strict:
        sent = _in_the_form_of_chats(sent, notes)
    kind = sent.get("type") if isinstance(sent, dict) else None
    if sent is None or sent in _WORDS or kind in ("function", "allowed_tools"):
        return sent
    message = 'Give "none", "auto", "required", or an object that names a function.'
    raise PydanticCustomError("literal_error", message)


def _in_the_form_of_chats(sent: object, notes: Notes) -> object:
    if sent == "any":
        return "required"
    if not isinstance(sent, dict):
        return sent
    kind = sent.get("type") or "function"
    if kind == "any" or kind in _WORDS:
        notes.unread(sent, ("type",), "tool_choice")
        return "required" if kind == "any" else kind
    if kind in ("function", "tool") and sent.get("name") and not sent.get("function"):
        notes.unread(sent, ("type", "name"), "tool_choice")
        return {"type": "function", "function": {"name": sent["name"]}}
    return {**sent, "type": kind}


Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]
GivenTools = Annotated[
    Tools | None, BeforeValidator(_without_hosted, json_schema_input_type=Tools | None)
]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools
GivenToolChoice = Annotated[
    ToolChoice | None, BeforeValidator(_choice_of, json_schema_input_type=ToolChoice | None)
]

Functions = Annotated[list[Function], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]
FunctionCall = Literal["none", "auto"] | FunctionName


def tools_of(
    functions: Sequence[Function], call: FunctionCall | None
) -> tuple[list[Tool], ToolChoice | None]:
    """Return `functions` and `function_call` as tools and the choice of a tool."""
    tools = [Tool(type="function", function=function) for function in functions]
    if isinstance(call, FunctionName):
        return tools, NamedTool(type="function", function=call)
    return tools, call


def check_tools(
    tools: Sequence[Tool] | None,
    choice: ToolChoice | None,
    fields: tuple[str, str] = ("tools", "tool_choice"),
) -> None:
    """Raise PydanticCustomError unless names are unique and the chosen names exist.

    `fields` has the names of the fields with the tools and with the choice.
    """
    listed, chosen = fields
    names = [tool.function.name for tool in tools or ()]
    if len(set(names)) < len(names):
        raise misplaced(listed, "Give each tool its own name.")
    if not tools and choice not in (None, "none"):
        raise misplaced(chosen, f"Give {listed} to use {chosen}.")
    if not set(_chosen_names(choice) or ()) <= set(names):
        raise misplaced(chosen, f"Name a function that is listed in {listed}.")


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
