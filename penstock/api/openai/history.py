"""A conversation's turns, read from whatever clients send back.

In: turns as JSON. Out: `Message`s for the engine, and notes on fields that were left out. Clients
send an assistant's turn back as they received it, or as another server's client library made it.
So a turn is refused only if the model would otherwise see another conversation: for images, audio,
unknown kinds of parts, or a missing role.
"""

import json
from typing import Any, NoReturn

from pydantic_core import PydanticCustomError

from penstock.api.conversation import MEDIA, Pairing, refuse_part
from penstock.api.fields import misplaced
from penstock.api.tolerance import Notes
from penstock.request import Message, ToolUse
from penstock.web.strict_json import has_few_values

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_READ_FROM_ALL = ("role", "content")
_READ_FROM_TOOLS = (*_READ_FROM_ALL, "tool_call_id")
_READ_FROM_FUNCTIONS = (*_READ_FROM_TOOLS, "name")
_READ_FROM_ASSISTANTS = (
    *_READ_FROM_ALL,
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal"),
)
# The kinds of parts that are text → the part's field that has the text.
_TEXT_OF = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")


def read_turns(sent: list[Any], notes: Notes) -> tuple[Message, ...]:
    """Return the conversation. Raises PydanticCustomError if a turn cannot be shown.

    Calls and results without an id get one: results answer earlier calls in order.
    """
    if not sent:
        raise PydanticCustomError("too_short", "Give at least one message.")
    pairing = Pairing()
    messages = []
    for number, turn in enumerate(sent):
        if not isinstance(turn, dict):
            raise misplaced(f"{number}", "Give each message as an object.", "model_type")
        try:
            message = _read_turn(turn, number, notes)
        except PydanticCustomError as error:
            field = (error.context or {})["field"]
            raise misplaced(f"{number}.{field}", error.message_template, error.type) from None
        messages.append(pairing.paired(message, number))
    return tuple(messages)


def _read_turn(sent: dict[str, Any], number: int, notes: Notes) -> Message:
    role = sent.get("role")
    if role is None:
        raise misplaced("role", "Give the role of this turn.", "missing")
    if role not in ROLES:
        raise misplaced("role", f"Give one of the roles {', '.join(ROLES)}.", "literal_error")
    is_assistant, is_result = role == "assistant", role in ("tool", "function")
    read: tuple[str, ...] = _READ_FROM_ALL
    if is_assistant:
        read = _READ_FROM_ASSISTANTS
    elif is_result:
        read = _READ_FROM_FUNCTIONS if role == "function" else _READ_FROM_TOOLS
    notes.unread(sent, read, "messages[]")
    content = sent.get("content")
    if is_result and not _is_text(content):
        return Message(
            "tool",
            json.dumps(content, ensure_ascii=False),
            tool_call_id=_text_in(sent, "tool_call_id", notes),
        )
    text, thoughts = _read_content(content, notes)
    if is_assistant:
        refusal = _text_in(sent, "refusal", notes)
        if text and refusal:
            notes.ignore("messages[].refusal")
        given = [_text_in(sent, name, notes) for name in ("reasoning_content", "reasoning")]
        return Message(
            "assistant",
            text or refusal,
            given[0] or given[1] or thoughts,
            _read_calls(sent, number, notes),
        )
    if thoughts:
        notes.ignore("messages[].content[].thinking")
    if is_result:
        return Message("tool", text, tool_call_id=_text_in(sent, "tool_call_id", notes))
    # Chat templates know a developer as the role system.
    return Message("system" if role == "developer" else role, text)


def _text_in(sent: dict[str, Any], name: str, notes: Notes) -> str:
    """Return a field that is a string; any other value is left out."""
    value = sent.get(name)
    if isinstance(value, str):
        return value
    if value:
        notes.ignore(f"messages[].{name}")
    return ""


def _is_text(content: object) -> bool:
    """Return True if a tool's result is text, or parts that may be text."""
    if isinstance(content, list):
        return all(
            isinstance(part, str)
            or (
                isinstance(part, dict)
                and isinstance(kind := part.get("type"), str)
                and (kind in _TEXT_OF or kind in MEDIA)
            )
            for part in content
        )
    return content is None or isinstance(content, str)


def _read_content(content: object, notes: Notes) -> tuple[str, str]:
    """Return the text of a content, and the reasoning in it."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise misplaced("content", "Give a string or a list of parts.", "string_type")
    texts, thoughts = [], []
    for number, part in enumerate(content):
        place = f"content.{number}"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise misplaced(place, "Give each part as an object.", "dict_type")
        kind = part.get("type", "text")
        if kind in _THOUGHTS:
            thought = part.get("thinking") or part.get("text")
            if isinstance(thought, str):
                thoughts.append(thought)
            else:
                notes.ignore("messages[].content[].thinking")
            readable = "thinking" if part.get("thinking") else "text"
            notes.unread(part, ("type", readable), "messages[].content[]")
            continue
        field = _TEXT_OF.get(kind) if isinstance(kind, str) else None
        if field is None:
            refuse_part(place, kind)
        if field not in part:
            raise misplaced(f"{place}.{field}", "Give the text of this part.", "missing")
        text = part[field]
        if not (text is None or isinstance(text, str)):
            raise misplaced(f"{place}.{field}", "Give a string.", "string_type")
        texts.append(text or "")
        notes.unread(part, ("type", field), "messages[].content[]")
    return "".join(texts), "".join(thoughts)


def _read_calls(sent: dict[str, Any], turn: int, notes: Notes) -> tuple[ToolUse, ...]:
    """Return the calls of turn number `turn`; a call without an id gets one."""
    calls, legacy = sent.get("tool_calls"), sent.get("function_call")
    if calls and not isinstance(calls, list):
        raise misplaced("tool_calls", "Give a list of tool calls.", "list_type")
    if isinstance(legacy, dict) and legacy and not calls:
        calls = [{"function": legacy}]
    elif legacy:
        notes.ignore("messages[].function_call")
    read = []
    for number, call in enumerate(calls or ()):
        if not isinstance(call, dict):
            raise misplaced(f"tool_calls.{number}", "Give each call as an object.", "dict_type")
        function = call.get("function")
        readable = "function"
        custom = call.get("custom")
        if isinstance(custom, dict) and custom:  # OpenAI's tools that take plain text
            readable = "custom"
            notes.unread(custom, ("name", "input"), "messages[].tool_calls[].custom")
            arguments = {"input": custom.get("input") or ""}
            function = {"name": custom.get("name"), "arguments": arguments}
        if not isinstance(function, dict):
            place = f"tool_calls.{number}.function"
            raise misplaced(place, "Give the function that was called.", "dict_type")
        place = "messages[].tool_calls[]"
        notes.unread(call, ("id", "type", "index", readable), place)
        notes.unread(function, ("name", "arguments"), f"{place}.function")
        called, call_id = function.get("name"), call.get("id")
        if not (isinstance(called, str) and called):
            notes.ignore("messages[].tool_calls[].function.name")
            called = "unknown"
        if not (isinstance(call_id, str) and call_id):
            call_id = f"call_{turn}_{number}"
        read.append(ToolUse(call_id, called, _read_arguments(function.get("arguments"), notes)))
    return tuple(read)


def _read_arguments(arguments: object, notes: Notes) -> str:
    """Return the arguments as a JSON object in a string; anything else becomes an empty object."""
    if isinstance(arguments, dict):
        return json.dumps(arguments, ensure_ascii=False)
    if isinstance(arguments, str) and is_json_object(arguments):
        return arguments
    notes.ignore("messages[].tool_calls[].function.arguments")
    return "{}"


def is_json_object(text: str) -> bool:
    """Return True if `text` is a JSON object that every engine can read."""
    try:
        if not has_few_values(text.encode()):
            return False
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # perhaps half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
