"""The input of a response: items as clients send them, read as a conversation.

In: a text, or a list of messages, reasoning, calls and their results. Out: `Message`s for the
engine. Clients send a model's items back as they received them, also those of other servers. So an
item is refused only if the model would otherwise see another conversation.
"""

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from penstock.api.conversation import refusal_of_part
from penstock.api.openai.history import is_json_object
from penstock.api.openai.responses.tools import INPUT, joined
from penstock.api.tolerance import Notes
from penstock.errors import FieldError, InvalidFields
from penstock.request import Message, ToolUse

Resolve = Callable[[str], dict[str, Any] | None]
"""Returns the stored item with this id, if there is one."""
SEAL = "penstock-1:"
_ROLES = ("user", "assistant", "system", "developer")
_TEXT_OF = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "summary_text": "text",
    "reasoning_text": "text",
}
_READ = {
    "message": ("type", "role", "content", "id", "status", "phase"),
    "reasoning": ("type", "id", "status", "summary", "content", "encrypted_content"),
    "function_call": ("type", "id", "status", "call_id", "name", "namespace", "arguments"),
    "custom_tool_call": ("type", "id", "status", "call_id", "name", "namespace", "input"),
    "function_call_output": ("type", "id", "status", "call_id", "output"),
    "custom_tool_call_output": ("type", "id", "status", "call_id", "output"),
    "item_reference": ("type", "id"),
}


def sealed(reasoning: str) -> str:
    """Return reasoning in the form in which a client keeps it without reading it.

    It is not secret: the client may read the reasoning anyway.
    """
    return base64.b64encode((SEAL + reasoning).encode()).decode()


def unsealed(content: object) -> str:
    """Return the reasoning in `encrypted_content`, "" if another server made it."""
    if not isinstance(content, str):
        return ""
    try:
        text = base64.b64decode(content, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return text.removeprefix(SEAL) if text.startswith(SEAL) else ""


def read_items(sent: list[Any], notes: Notes, resolve: Resolve) -> list[Message]:
    """Return the conversation. Raises InvalidFields if an item cannot be shown."""
    conversation = _Conversation()
    for number, item in enumerate(sent):
        _Item(item, f"input.{number}", notes, resolve).add_to(conversation)
    return conversation.messages


class _Conversation:
    """Puts the pieces of an assistant's turn together: reasoning, texts and calls."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def add(self, message: Message) -> None:
        self.messages.append(message)

    def add_reasoning(self, text: str) -> None:
        self.messages.append(Message("assistant", "", text))

    def add_text(self, text: str) -> None:
        last = self._open_turn()
        if last is not None and not last.content and not last.tool_calls:
            self.messages[-1] = msgspec.structs.replace(last, content=text)
        else:
            self.messages.append(Message("assistant", text))

    def add_call(self, call: ToolUse) -> None:
        last = self._open_turn()
        if last is None:
            last = Message("assistant", "")
            self.messages.append(last)
        self.messages[-1] = msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call))

    def _open_turn(self) -> Message | None:
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.role == "assistant" else None


class _Item:
    """One item of the input."""

    def __init__(self, sent: Any, place: str, notes: Notes, resolve: Resolve) -> None:
        if not isinstance(sent, dict):
            _refuse(place, "invalid_type", "Give each item as an object.")
        self._sent = sent
        self._place = place
        self._notes = notes
        self._resolve = resolve

    def add_to(self, conversation: _Conversation) -> None:
        """Add the item to the conversation. Raises InvalidFields."""
        sent = self._sent
        kind = sent.get("type") or ("message" if "role" in sent else None)
        if not isinstance(kind, str):
            _refuse(f"{self._place}.type", "missing_field", "Give the type of this item.")
        read = _READ.get(kind)
        if read is None:  # what a hosted tool of another server did
            self._leave_out(f"input[].{kind}")
            return
        self._notes.unread(sent, read, "input[]")
        if kind == "message":
            self._add_message(conversation)
        elif kind == "reasoning":
            self._add_reasoning(conversation)
        elif kind == "item_reference":
            self._add_referenced(conversation)
        elif kind.endswith("_output"):
            conversation.add(Message("tool", self._output(), tool_call_id=self._call_id()))
        else:
            conversation.add_call(self._call(is_custom=kind == "custom_tool_call"))

    def _leave_out(self, name: str) -> None:
        refusal = FieldError(self._place, "unsupported_field", f"{self._place}: unknown item.")
        self._notes.ignore_or(InvalidFields([refusal]), name)

    def _add_message(self, conversation: _Conversation) -> None:
        role = self._sent.get("role")
        if role not in _ROLES:
            _refuse(
                f"{self._place}.role",
                "invalid_value",
                f"Give one of the roles {', '.join(_ROLES)}.",
            )
        text = self._text(self._sent.get("content"), "content")
        if role == "assistant":
            conversation.add_text(text)
        else:  # chat templates know a developer as the role system
            conversation.add(Message("system" if role == "developer" else role, text))

    def _add_reasoning(self, conversation: _Conversation) -> None:
        sent = self._sent
        text = self._text(sent.get("content") or (), "content")
        text = text or unsealed(sent.get("encrypted_content"))
        text = text or self._text(sent.get("summary") or (), "summary")
        if text:
            conversation.add_reasoning(text)
        elif sent.get("encrypted_content"):
            self._notes.ignore("input[].encrypted_content")

    def _add_referenced(self, conversation: _Conversation) -> None:
        item_id = self._sent.get("id")
        found = self._resolve(item_id) if isinstance(item_id, str) else None
        if found is None:
            _refuse(f"{self._place}.id", "invalid_value", "There is no stored item with this id.")
        _Item(found, self._place, self._notes, _resolve_nothing).add_to(conversation)

    def _call(self, *, is_custom: bool) -> ToolUse:
        sent = self._sent
        name, namespace = sent.get("name"), sent.get("namespace")
        if namespace and not isinstance(namespace, str):
            self._notes.ignore("input[].namespace")
        if not (isinstance(name, str) and name):
            _refuse(f"{self._place}.name", "missing_field", "Give the name of the tool.")
        if is_custom:
            arguments = json.dumps({INPUT: str(sent.get("input") or "")}, ensure_ascii=False)
        else:
            arguments = sent.get("arguments") or "{}"
            if not (isinstance(arguments, str) and is_json_object(arguments)):
                self._notes.ignore("input[].arguments")
                arguments = "{}"
        seen = joined(namespace if isinstance(namespace, str) else "", name)
        return ToolUse(self._call_id(), seen, arguments)

    def _call_id(self) -> str:
        call_id = self._sent.get("call_id")
        if isinstance(call_id, str) and call_id:
            return call_id
        return f"call_{self._place.rpartition('.')[2]}"

    def _output(self) -> str:
        output = self._sent.get("output")
        if isinstance(output, list) and all(isinstance(each, dict) for each in output):
            return self._text(output, "output")
        if output is None or isinstance(output, str):
            return output or ""
        return json.dumps(output, ensure_ascii=False)

    def _text(self, content: Any, field: str) -> str:
        """Return the text of a content. Raises InvalidFields for anything but text."""
        place = f"{self._place}.{field}"
        if content is None or isinstance(content, str):
            return content or ""
        if not isinstance(content, list | tuple):
            _refuse(place, "invalid_type", "Give a string or a list of parts.")
        texts = []
        for number, part in enumerate(content):
            kind = part.get("type", "input_text") if isinstance(part, dict) else None
            name = _TEXT_OF.get(kind) if isinstance(kind, str) else None
            if name is None:
                _refuse(f"{place}.{number}.type", "unsupported_field", refusal_of_part(kind))
            text = part.get(name)
            if not (text is None or isinstance(text, str)):
                _refuse(f"{place}.{number}.{name}", "invalid_type", "Give a string.")
            texts.append(text or "")
            self._notes.unread(part, ("type", name), f"input[].{field}[]")
        return "".join(texts)


def _resolve_nothing(_: str) -> None:
    return None


def _refuse(field: str, code: str, message: str) -> NoReturn:
    raise InvalidFields([FieldError(field, code, f"{field}: {message}")])
