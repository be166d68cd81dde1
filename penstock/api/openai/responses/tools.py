"""The tools of a response: functions, custom tools, and namespaces of both.

In: tools in the form of OpenAI's Responses API. Out: the functions that the model sees, in the form
of chats, and how clients see a call of each. A custom tool takes plain text: the model sees a
function with one argument, `input`. Hosted tools, which only run on OpenAI's servers, are left out
and noted.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgspec
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from penstock.api.fields import misplaced
from penstock.api.openai.tools import (
    AllowedToolList,
    AllowedTools,
    Function,
    FunctionName,
    NamedTool,
    Tool,
    ToolChoice,
)
from penstock.api.tolerance import Notes, asks_nothing
from penstock.api.tools import MAX_TOOLS

INPUT = "input"
"""The argument of the function that stands for a custom tool."""
_READ_FROM_FUNCTIONS = ("type", "name", "description", "parameters", "strict")
_READ_FROM_CUSTOM_TOOLS = ("type", "name", "description", "format")


class ShownTool(msgspec.Struct, frozen=True, array_like=True):
    """A tool as its client knows it. `is_custom`: it takes plain text."""

    name: str
    namespace: str = ""
    is_custom: bool = False


@dataclass
class ToolSet:
    """The tools that the model sees as functions, and each as its client knows it, by name."""

    functions: list[Tool] = field(default_factory=list)
    shown: dict[str, ShownTool] = field(default_factory=dict)

    def add(self, tool: Tool, shown: ShownTool) -> None:
        """Add a tool. Raises PydanticCustomError if another one has its name."""
        name = tool.function.name
        if name in self.shown:
            raise misplaced("", "Give each tool its own name.")
        self.functions.append(tool)
        self.shown[name] = shown

    def name_of(self, name: str, namespace: str) -> str | None:
        """Return the name of the function that the model sees, None if there is no such tool."""
        for seen, shown in self.shown.items():
            if shown.name == name and namespace in ("", shown.namespace):
                return seen
        return None


def joined(namespace: str, name: str) -> str:
    """Return the name of a namespace's tool as the model sees it."""
    if not namespace:
        return name
    return namespace + name if namespace.endswith("__") else f"{namespace}__{name}"


def read_tools(sent: list[Any], notes: Notes) -> ToolSet:
    """Return the tools. Raises PydanticCustomError, with the place of the error in the list."""
    if len(sent) > MAX_TOOLS:
        raise PydanticCustomError("too_long", f"Give at most {MAX_TOOLS} tools.")
    tools = ToolSet()
    for number, tool in enumerate(sent):
        _read_tool(tool, f"{number}", "", tools, notes)
    return tools


def _read_tool(sent: Any, place: str, namespace: str, tools: ToolSet, notes: Notes) -> None:
    if not isinstance(sent, dict):
        raise misplaced(place, "Give each tool as an object.", "model_type")
    kind = sent.get("type")
    if kind == "namespace" and not namespace:
        name, inner = sent.get("name"), sent.get("tools")
        if not isinstance(name, str) or not isinstance(inner, list):
            raise misplaced(place, "Give a namespace its name and its tools.", "missing")
        notes.unread(sent, ("type", "name", "tools"), "tools[]")
        for number, each in enumerate(inner):
            _read_tool(each, f"{place}.tools.{number}", name, tools, notes)
    elif kind in ("function", "custom"):
        is_custom = kind == "custom"
        read = _READ_FROM_CUSTOM_TOOLS if is_custom else _READ_FROM_FUNCTIONS
        notes.unread(sent, read, "tools[]")
        given = _as_function(sent, place, notes) if is_custom else sent
        if not notes.strict:
            given = {name: value for name, value in given.items() if not asks_nothing(value)}
        function = _checked(given, place, namespace)
        shown = ShownTool(str(sent.get("name")), namespace, is_custom)
        try:
            tools.add(Tool(type="function", function=function), shown)
        except PydanticCustomError as error:
            raise misplaced(f"{place}.name", error.message_template) from None
    elif isinstance(kind, str):
        refusal = "This server runs no tools of its own. Give functions."
        notes.ignore_or(misplaced(f"{place}.type", refusal, "unsupported_field"), f"tools[].{kind}")
    else:
        raise misplaced(f"{place}.type", "Give the type of this tool.", "missing")


def _checked(given: dict[str, Any], place: str, namespace: str) -> Function:
    values = {name: given[name] for name in _READ_FROM_FUNCTIONS[1:] if name in given}
    if isinstance(values.get("name"), str):
        values["name"] = joined(namespace, values["name"])
    try:
        return Function.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        _refuse(place, first["loc"], first["type"], first["msg"])


def _refuse(place: str, location: tuple[int | str, ...], kind: str, message: str) -> NoReturn:
    raise misplaced(".".join([place, *map(str, location)]), message, kind)


def _as_function(sent: dict[str, Any], place: str, notes: Notes) -> dict[str, Any]:
    """Return the function that stands for a custom tool.

    A regular expression binds its input. A grammar in Lark's form cannot be a part of a schema: it
    goes into the description, and the notes say that it binds nothing.
    """
    text: dict[str, Any] = {"type": "string"}
    description = sent.get("description") or ""
    form = sent.get("format") or {}
    if not isinstance(form, dict) or not isinstance(description, str):
        raise misplaced(f"{place}.format", "Give an object.", "model_type")
    definition = form.get("definition")
    is_grammar = form.get("type") == "grammar" and isinstance(definition, str)
    if form and not is_grammar and form.get("type") != "text":
        notes.ignore("tools[].format")
    notes.unread(form, ("type", "definition", "syntax"), "tools[].format")
    if is_grammar:
        if form.get("syntax") == "regex":
            text["pattern"] = f"^(?:{definition})$"
        else:
            notes.ignore("tools[].format")
            description = f"{description}\nThe input follows this grammar:\n{definition}".strip()
    parameters = {
        "type": "object",
        "properties": {INPUT: text},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return {"name": sent.get("name"), "description": description, "parameters": parameters}


def read_choice(sent: Any, tools: ToolSet, notes: Notes) -> ToolChoice:
    """Return the choice of tools in the form of chats. Raises PydanticCustomError."""
    if sent in ("none", "auto", "required"):
        choice: ToolChoice = sent
        return choice
    if not isinstance(sent, dict):
        raise PydanticCustomError("literal_error", "Give none, auto, required or an object.")
    if sent.get("type") == "allowed_tools":
        mode, given = sent.get("mode"), sent.get("tools")
        if mode not in ("auto", "required") or not isinstance(given, list) or not given:
            raise PydanticCustomError("value_error", "Give the mode, auto or required, and tools.")
        notes.unread(sent, ("type", "mode", "tools"), "tool_choice")
        named = [_named(each, tools, notes) for each in given if _is_ours(each)]
        if not named:
            raise _not_ours()
        allowed = AllowedToolList(mode=mode, tools=named)
        return AllowedTools(type="allowed_tools", allowed_tools=allowed)
    if not _is_ours(sent):
        raise _not_ours()
    return _named(sent, tools, notes)


def _is_ours(sent: Any) -> bool:
    return isinstance(sent, dict) and sent.get("type") in ("function", "custom")


def _named(sent: dict[str, Any], tools: ToolSet, notes: Notes) -> NamedTool:
    notes.unread(sent, ("type", "name", "namespace"), "tool_choice")
    name, namespace = sent.get("name"), sent.get("namespace") or ""
    found = tools.name_of(name, namespace) if isinstance(name, str) else None
    if found is None:
        raise PydanticCustomError("value_error", "Name a tool that is listed in tools.")
    return NamedTool(type="function", function=FunctionName(name=found))


def _not_ours() -> PydanticCustomError:
    return PydanticCustomError(
        "unsupported_field", "This server runs no tools of its own. Choose a function."
    )


# The input of a custom tool, which is a string in the arguments of its function.

_BEGINNING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_WHOLE_CHARACTERS = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*"
)


class InputText:
    """Finds the text in the arguments of a custom tool while they come."""

    def __init__(self) -> None:
        self._rest = ""
        self._has_begun = False

    def feed(self, arguments: str) -> str:
        """Return what this part of the arguments adds to the text."""
        self._rest += arguments
        if not self._has_begun:
            found = _BEGINNING.match(self._rest)
            if found is None:
                return ""
            self._has_begun = True
            self._rest = self._rest[found.end() :]
        whole = _WHOLE_CHARACTERS.match(self._rest)
        assert whole is not None  # it matches nothing, too
        self._rest = self._rest[whole.end() :]
        return str(json.loads(f'"{whole[0]}"', strict=False))


def input_in(arguments: str) -> str:
    """Return the text in whole arguments, or as far as it goes."""
    return InputText().feed(arguments)
