"""A conversation's turns, read from whatever clients send back.

In: a turn as JSON. Out: the fields of a `ChatTurn`, and notes on fields that were left out. Clients
send an assistant's turn back as they received it, or as another server's client library made it.
So a turn is refused only if the model would otherwise see another conversation: for images, audio,
unknown kinds of parts, or a missing role.
"""

import json
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic_core import PydanticCustomError

from penstock.api.tolerance import Notes

if TYPE_CHECKING:
    from penstock.api.openai.turns import ChatTurn

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_READ_FROM_ALL = ("role", "content")
_READ_FROM_ASSISTANTS = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "refusal",
)
# The kinds of parts that are text → the part's field that has the text.
_TEXT_OF = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
_MEDIA = {
    "image_url": "images",
    "image": "images",
    "input_image": "images",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video_url": "videos",
    "video": "videos",
    "file": "files",
    "input_file": "files",
    "document": "files",
}


def misplaced(field: str, message: str, kind: str = "misplaced") -> PydanticCustomError:
    """Return an error about `field`, for rules that involve several fields."""
    return PydanticCustomError(kind, message, {"field": field})


def refuse_part(place: str, kind: object) -> NoReturn:
    """Refuse a part that is not text. Raises PydanticCustomError."""
    media = _MEDIA.get(kind) if isinstance(kind, str) else None
    if media is None:
        raise misplaced(f"{place}.type", "Give only parts of the type text.", "literal_error")
    raise misplaced(
        f"{place}.type",
        f"This server cannot show {media} to the model; it takes text only. Describe the content in"
        f" a part of the type text, or ask a server whose engine takes {media}.",
        "literal_error",
    )


def read_turn(sent: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """Return the fields of a `ChatTurn`. Raises PydanticCustomError if the turn cannot be shown."""
    role = sent.get("role")
    if role is None:
        raise misplaced("role", "Give the role of this turn.", "missing")
    if role not in ROLES:
        raise misplaced("role", f"Give one of the roles {', '.join(ROLES)}.", "literal_error")
    is_assistant, is_result = role == "assistant", role in ("tool", "function")
    read: tuple[str, ...] = _READ_FROM_ALL
    read += _READ_FROM_ASSISTANTS if is_assistant else ()
    read += ("tool_call_id",) if is_result else ()
    read += ("name",) if role == "function" else ()
    for name, value in sent.items():
        if value and name not in read:  # empty values change nothing
            notes.ignore(f"messages[].{name}")
    content = sent.get("content")
    if is_result and not _is_text(content):
        text, thoughts = json.dumps(content, ensure_ascii=False), ""
    else:
        text, thoughts = _read_content(content, notes)
    fields: dict[str, Any] = {"role": "tool" if is_result else role}
    if is_result:
        fields["tool_call_id"] = _text_or_none(sent, "tool_call_id", notes)
    if is_assistant:
        text = text or _text_or_none(sent, "refusal", notes) or ""
        given = [_text_or_none(sent, name, notes) for name in ("reasoning_content", "reasoning")]
        fields["reasoning_content"] = given[0] or given[1] or thoughts or None
        fields["tool_calls"] = _read_calls(sent, notes)
    elif thoughts:
        notes.ignore("messages[].content[].thinking")
    return {**fields, "content": text}


def _text_or_none(sent: dict[str, Any], name: str, notes: Notes) -> str | None:
    value = sent.get(name)
    if isinstance(value, str):
        return value or None
    if value:
        notes.ignore(f"messages[].{name}")
    return None


def _is_text(content: object) -> bool:
    """Return True if a tool's result is text, or parts that may be text."""
    if isinstance(content, list):
        return all(
            isinstance(part, str)
            or (
                isinstance(part, dict)
                and isinstance(kind := part.get("type"), str)
                and (kind in _TEXT_OF or kind in _MEDIA)
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
        for name, value in part.items():
            if value and name not in ("type", field):
                notes.ignore(f"messages[].content[].{name}")
    return "".join(texts), "".join(thoughts)


def _read_calls(sent: dict[str, Any], notes: Notes) -> list[dict[str, Any]] | None:
    """Return the fields of the turn's `CalledTool`s; a call without an id gets none yet."""
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
        if isinstance(custom := call.get("custom"), dict):  # OpenAI's tools that take plain text
            arguments = {"input": custom.get("input") or ""}
            function = {"name": custom.get("name"), "arguments": arguments}
        if not isinstance(function, dict):
            place = f"tool_calls.{number}.function"
            raise misplaced(place, "Give the function that was called.", "dict_type")
        for name, value in call.items():
            if value and name not in ("id", "type", "index", "function", "custom"):
                notes.ignore(f"messages[].tool_calls[].{name}")
        for name, value in function.items():
            if value and name not in ("name", "arguments"):
                notes.ignore(f"messages[].tool_calls[].function.{name}")
        called, call_id = function.get("name"), call.get("id")
        if not (isinstance(called, str) and called):
            notes.ignore("messages[].tool_calls[].function.name")
            called = "unknown"
        read.append(
            {
                "id": call_id if isinstance(call_id, str) else "",
                "name": called,
                "arguments": _read_arguments(function.get("arguments"), notes),
            }
        )
    return read or None


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
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # perhaps half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def link_results(turns: Sequence["ChatTurn"]) -> None:
    """Give calls and results without an id one: results answer earlier calls in order."""
    waiting: deque[str] = deque()
    answered: set[str] = set()
    for number, turn in enumerate(turns):
        for place, call in enumerate(turn.tool_calls or ()):
            call.id = call.id or f"call_{number}_{place}"
            waiting.append(call.id)
        if turn.role != "tool":
            continue
        while waiting and waiting[0] in answered:
            waiting.popleft()
        if not turn.tool_call_id:
            turn.tool_call_id = waiting.popleft() if waiting else f"call_{number}"
        answered.add(turn.tool_call_id)
