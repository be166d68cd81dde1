"""The turns and the system prompt of Anthropic's API, read from whatever clients send back.

In: JSON. Out: `Message`s for the engine, and notes on what was left out. A turn is refused only if
the model would otherwise see another conversation: for images, files and unknown kinds of blocks.
With `--strict`, `blocks` says what else is refused.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from penstock.api.anthropic.blocks import Texts, Turns
from penstock.api.anthropic.signatures import carried_by, is_signed
from penstock.api.conversation import Pairing, refuse_part
from penstock.api.fields import MAX_MESSAGES, misplaced
from penstock.api.tolerance import Notes, notes_of
from penstock.request import Message, ToolUse

ROLES = ("user", "assistant", "system")
_CONTENT = "messages[].content[]"
_READ: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "document": ("source", "title", "context"),
    "search_result": ("source", "title", "content"),
    "thinking": ("thinking", "signature"),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content", "is_error"),
}
"""The kinds of blocks that the model sees, each with the fields that are read."""
_OF_HOSTED_TOOLS = re.compile(
    r"(server|mcp)_tool_use|\w{1,64}_tool_result|(redacted_|connector_)?thinking|container_upload"
    r"|tool_reference|compaction|fallback|browser_state",
    re.ASCII,
)
"""Blocks that only Anthropic's own server can read or make."""
_UNKNOWN = "Give blocks of the types text, tool_use, tool_result, thinking or document."
# Claude Code begins its system prompt with this line, which changes from version to version and
# from session to session. It says nothing to the model, and would spoil the engine's cache.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n*")


def read_system(sent: str | list[Any], notes: Notes) -> str:
    """Return the system prompt: its blocks, one after the other. Raises PydanticCustomError."""
    texts = []
    blocks = [{"type": "text", "text": sent}] if isinstance(sent, str) else sent
    for number, block in enumerate(blocks):
        text = _text_block(block, f"{number}", "system[]", notes)
        if shown := _BILLING.sub("", text):
            texts.append(shown)
        if shown != text:
            notes.ignore("system[].x-anthropic-billing-header")
    return "\n".join(texts)


def read_turns(sent: list[Any], notes: Notes) -> tuple[Message, ...]:
    """Return the conversation. Raises PydanticCustomError if a turn cannot be shown."""
    if not sent:
        raise PydanticCustomError("too_short", "Give at least one message.")
    if notes.strict and len(sent) > MAX_MESSAGES:
        raise PydanticCustomError("too_long", f"Give at most {MAX_MESSAGES} messages.")
    pairing = Pairing()
    messages: list[Message] = []
    for number, turn in enumerate(sent):
        if not isinstance(turn, dict):
            raise misplaced(f"{number}", "Give each message as an object.", "model_type")
        try:
            for message in _messages_of(turn, number, notes):
                messages.append(pairing.paired(message, len(messages)))
        except PydanticCustomError as error:
            field = (error.context or {})["field"]
            raise misplaced(f"{number}.{field}", error.message_template, error.type) from None
    return tuple(messages)


def _messages_of(turn: dict[str, Any], number: int, notes: Notes) -> Iterator[Message]:
    """Yield the messages of a turn: its results of tools are messages of their own."""
    role, content = turn.get("role"), turn.get("content")
    if role is None:
        raise misplaced("role", "Give the role of this turn.", "missing")
    if role not in ROLES:
        raise misplaced("role", f"Give one of the roles {', '.join(ROLES)}.", "literal_error")
    _note_unread(turn, ("role", "content"), "messages[]", notes)
    if content is None or isinstance(content, str):
        yield Message(role, content or "")
        return
    if not isinstance(content, list):
        raise misplaced("content", "Give a string or a list of blocks.", "string_type")
    if role == "assistant":
        yield _answer(content, number, notes)
        return
    texts: list[str] = []
    has_results = False
    for place, block, kind in _blocks(content, "content", notes):
        if kind == "tool_result":
            has_results = True
            if texts:
                yield Message(role, "\n".join(texts))
                texts = []
            yield _result(block, place, notes)
        elif kind in ("thinking", "tool_use"):
            notes.ignore_or(
                misplaced(f"{place}.type", "Only an assistant's turn has such blocks."),
                f"{_CONTENT}.{kind}",
            )
        else:
            texts.append(_shown(block, place, notes))
    if texts or not has_results:
        yield Message(role, "\n".join(texts))


def _answer(content: list[Any], number: int, notes: Notes) -> Message:
    """Return an assistant's turn: its text, its reasoning and its calls."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolUse] = []
    for place, block, kind in _blocks(content, "content", notes):
        if kind == "thinking":
            thoughts.append(_thought(block, place, notes))
        elif kind == "tool_use":
            calls.append(_call(block, f"call_{number}_{len(calls)}", notes))
        elif kind == "tool_result":
            raise misplaced(f"{place}.type", "Give results of tools in a turn of the user's.")
        else:
            texts.append(_shown(block, place, notes))
    return Message("assistant", "".join(texts), "".join(thoughts), tuple(calls))


def _blocks(
    content: list[Any], place: str, notes: Notes
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the blocks that the model sees: the place, the block and its kind."""
    for number, block in enumerate(content):
        where = f"{place}.{number}"
        if isinstance(block, str):
            block = {"type": "text", "text": block}
        if not isinstance(block, dict):
            raise misplaced(where, "Give each block as an object.", "dict_type")
        kind = block.get("type", "text")
        if isinstance(kind, str) and kind in _READ:
            _note_unread(block, ("type", *_READ[kind]), _CONTENT, notes)
            yield where, block, kind
        elif isinstance(kind, str) and _OF_HOSTED_TOOLS.fullmatch(kind):
            refusal = misplaced(f"{where}.type", "Only Anthropic's own server knows such blocks.")
            notes.ignore_or(refusal, f"{_CONTENT}.{kind}")
        else:
            refuse_part(where, kind, otherwise=_UNKNOWN)


def _shown(block: dict[str, Any], place: str, notes: Notes) -> str:
    """Return the text that the model sees of a block with text."""
    kind = block.get("type", "text")
    if kind == "text":
        return _text_block(block, place, _CONTENT, notes)
    above = []
    for name in ("title", "context"):
        if isinstance(each := block.get(name), str):
            above += [each] if each else []
        elif each:
            notes.ignore(f"{_CONTENT}.{name}")
    source = block.get("source")
    if kind == "search_result":
        above += [source] if isinstance(source, str) else []
        return "\n".join((*above, _texts(block.get("content"), f"{place}.content", notes)))
    if isinstance(source, dict):
        read = ("type", "media_type", "content" if source.get("type") == "content" else "data")
        _note_unread(source, read, f"{_CONTENT}.source", notes)
    if isinstance(source, dict) and source.get("type") == "text":
        text = source.get("data")
    elif isinstance(source, dict) and source.get("type") == "content":
        text = _texts(source.get("content"), f"{place}.source.content", notes)
    else:
        refuse_part(place, kind)
    if not isinstance(text, str):
        raise misplaced(f"{place}.source.data", "Give a string.", "string_type")
    return "\n".join((*above, text))


def _texts(content: object, place: str, notes: Notes) -> str:
    """Return the text of a string, or of a list of blocks with text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise misplaced(place, "Give a string or a list of blocks.", "string_type")
    texts = []
    for where, block, kind in _blocks(content, place, notes):
        if kind in ("thinking", "tool_use", "tool_result"):
            refuse_part(where, kind, otherwise="Give only blocks with text here.")
        texts.append(_shown(block, where, notes))
    return "\n".join(texts)


def _text_block(block: object, place: str, shown: str, notes: Notes) -> str:
    """Return the text of a block of the type text, which `shown` names in notes."""
    if isinstance(block, str):
        return block
    if not isinstance(block, dict):
        raise misplaced(place, "Give each block as an object.", "dict_type")
    if block.get("type", "text") != "text":
        refuse_part(place, block.get("type"), otherwise="Give only blocks of the type text.")
    if "text" not in block:
        raise misplaced(f"{place}.text", "Give the text of this block.", "missing")
    text = block["text"]
    if not (text is None or isinstance(text, str)):
        raise misplaced(f"{place}.text", "Give a string.", "string_type")
    if shown != _CONTENT:
        _note_unread(block, ("type", "text"), shown, notes)
    return text or ""


def _result(block: dict[str, Any], place: str, notes: Notes) -> Message:
    """Return the result of a tool, as a message of its own."""
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        if call_id is not None:
            notes.ignore(f"{_CONTENT}.tool_use_id")
        call_id = ""
    text = _texts(block.get("content"), f"{place}.content", notes)
    return Message("tool", f"Error: {text}" if block.get("is_error") else text, "", (), call_id)


def _call(block: dict[str, Any], otherwise: str, notes: Notes) -> ToolUse:
    """Return a tool call; without an id of its own it gets the id `otherwise`."""
    call_id, name, given = block.get("id"), block.get("name"), block.get("input")
    if not (isinstance(call_id, str) and call_id):
        call_id = otherwise
    if not (isinstance(name, str) and name):
        notes.ignore(f"{_CONTENT}.name")
        name = "unknown"
    if not isinstance(given, dict):
        notes.ignore(f"{_CONTENT}.input")
        given = {}
    return ToolUse(call_id, name, json.dumps(given, ensure_ascii=False))


def _thought(block: dict[str, Any], place: str, notes: Notes) -> str:
    """Return the text of a thinking block. With `--strict` its signature must be ours."""
    text, signature = block.get("thinking"), block.get("signature")
    if not isinstance(text, str):
        text = ""
    if not isinstance(signature, str):
        signature = ""
    if notes.strict and not is_signed(text, signature):
        raise misplaced(
            f"{place}.signature",
            "Send the block back as you received it: its signature belongs to another text.",
        )
    return text or carried_by(signature)


def _note_unread(sent: dict[str, Any], read: tuple[str, ...], shown: str, notes: Notes) -> None:
    if not notes.strict:  # otherwise `blocks` decides
        notes.unread(sent, read, shown)


class _Read:
    """The schema of a field that a function of this module reads, if it is text or a list.

    With `--strict` the field must also be one of `right`.
    """

    def __init__(self, right: Any, read: Callable[[Any, Notes], Any], *, takes_text: bool) -> None:
        self._right = right
        self._function = read
        self._readable: tuple[type, ...] = (str, list) if takes_text else (list,)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        right = handler.generate_schema(self._right)
        return core_schema.with_info_wrap_validator_function(self._read, right)

    def _read(
        self, sent: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        notes = notes_of(info.context)
        if not isinstance(sent, self._readable):
            return validate(sent)
        read = self._function(sent, notes)
        if notes.strict:
            validate(sent)
        return read


Messages = Annotated[
    tuple[Message, ...],
    _Read(Turns, read_turns, takes_text=False),
]
"""A conversation. Its length is bounded by the body's, with `--strict` also by 1,024 turns."""

System = Annotated[str, _Read(Texts, read_system, takes_text=True)]
"""A system prompt: text, or blocks with text."""
