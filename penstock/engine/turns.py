"""Conversations in the form that the model's chat template can show.

In: `Message`s, and a function that renders messages with the template. Out: messages that the
template shows completely, and their rendering. Many templates refuse or silently drop turns that
they do not know: two turns of one role in a row, a late system turn, tool calls. Such turns are
merged or written as text. `turn` gives a message in OpenAI's form, for the engine that renders it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from penstock.request import Message, ToolUse

MERGED = "messages (merged)"
"""The note on a conversation whose turns had to be changed."""
DROPPED = "messages[].content"
"""The note on a conversation with a text before a tool call that the template does not show."""
REFUSED = (
    "The model's chat template cannot show this conversation. Send turns that alternate between"
    " user and assistant, after at most one system turn."
)
OPENING, CLOSING = "<tool_call>", "</tool_call>"
"""The marks around a tool call in a text."""
_BETWEEN = "\n\n"

Messages = tuple[Message, ...]
Rendering = TypeVar("Rendering")
Render = Callable[[Messages], Awaitable[Rendering]]


class TemplateRefusedError(Exception):
    """The model's chat template refuses the conversation."""


@dataclass(frozen=True)
class Template:
    """What a chat template shows.

    `system`: a system turn before the others. `lone_system`: a system turn without others.
    `late_system`: a system turn after others. `repeats`: two turns of one role in a row. `tools`:
    tool calls and their results. `text_with_calls`: the text of a turn that calls tools.
    """

    system: bool = True
    lone_system: bool = True
    late_system: bool = True
    repeats: bool = True
    tools: bool = True
    text_with_calls: bool = True

    @classmethod
    async def probe(cls, render: Render[str]) -> "Template":
        """Find out what a template shows by rendering short conversations with it."""

        async def shows(marks: str, *messages: Message) -> bool:
            try:
                text = await render(messages)
            except TemplateRefusedError:
                return False
            return all(mark in text for mark in marks.split())

        user, assistant, system = Message("user", "zu"), Message("assistant", "za"), "zsystemz"
        call = ToolUse("abcdefghi", "zcallz", '{"zargumentz": 1}')
        result = Message("tool", "zresultz", tool_call_id=call.id)
        return cls(
            await shows(system, Message("system", system), user),
            await shows(system, Message("system", system)),
            await shows(system, user, assistant, Message("system", system), user),
            await shows("zfirstz zlastz", Message("user", "zfirstz"), Message("user", "zlastz")),
            await shows(
                "zcallz zargumentz zresultz",
                user,
                Message("assistant", "", tool_calls=(call,)),
                result,
            ),
            await shows("ztextz", user, Message("assistant", "ztextz", "", (call,)), result),
        )

    async def show(
        self, messages: Messages, render: Render[Rendering]
    ) -> tuple[Messages, Rendering, tuple[str, ...]]:
        """Return the messages as the template shows them, their rendering, and notes on changes.

        The messages change as little as possible. Raises TemplateRefusedError if the template
        refuses every form of them.
        """
        tried: list[Messages] = []
        for form in (self._as_shown, self._as_alternating, _as_text):
            shown = form(messages)
            if shown in tried:
                continue
            tried.append(shown)
            try:
                rendering = await render(shown)
            except TemplateRefusedError:
                continue
            is_same = shown in (messages, _with_short_ids(messages))
            notes = () if is_same else (MERGED,)
            return shown, rendering, notes + self._dropped(shown)
        raise TemplateRefusedError

    def _dropped(self, shown: Messages) -> tuple[str, ...]:
        """Return the note on texts before tool calls, if the template drops such texts.

        Calls as text would show them, but then the model would call its tools as text, too.
        """
        has_text = any(message.content and message.tool_calls for message in shown)
        return (DROPPED,) if has_text and not self.text_with_calls else ()

    def _as_shown(self, messages: Messages) -> Messages:
        """Change only turns that the template is known to refuse or to drop."""
        messages = _without_empty_end(messages)
        if not self.tools:
            messages = _with_tools_as_text(messages)
        is_lone = all(message.role == "system" for message in messages)
        if not (self.lone_system if is_lone else self.system):
            messages = _with_system_as_user(messages)
        elif not self.late_system:
            messages = _with_system_first(messages)
        roles = {message.role for message in messages}
        if "system" in roles and "user" not in roles and not is_lone and not self.lone_system:
            messages = _with_user_turns(messages)  # such a template shows the two as one turn
        return messages if self.repeats else self._merged(messages)

    def _as_alternating(self, messages: Messages) -> Messages:
        """Put one system turn first; then user and assistant alternate, with tools between them."""
        messages = self._merged(_with_system_first(self._as_shown(messages)))
        return _with_short_ids(_with_user_turns(messages))

    def _merged(self, messages: Messages) -> Messages:
        """Merge turns of one role, but no text into a turn of calls if the template drops it."""
        return _merged(messages, calls_apart=not self.text_with_calls)


def _as_text(messages: Messages) -> Messages:
    """Leave only turns of user and assistant that alternate."""
    messages = _with_system_as_user(_with_tools_as_text(_without_empty_end(messages)))
    return _with_user_turns(_merged(messages))


def _without_empty_end(messages: Messages) -> Messages:
    """Drop an empty last turn of the assistant: the answer begins there anyway."""
    last = messages[-1]
    is_empty = last.role == "assistant" and not (last.content or last.reasoning or last.tool_calls)
    return messages[:-1] if is_empty and len(messages) > 1 else messages


def _with_system_first(messages: Messages) -> Messages:
    system = [message for message in messages if message.role == "system"]
    if not system or (len(system) == 1 and messages[0].role == "system"):
        return messages
    return (_joined(system), *(message for message in messages if message.role != "system"))


def _with_system_as_user(messages: Messages) -> Messages:
    if all(message.role != "system" for message in messages):
        return messages
    return _merged(
        tuple(
            msgspec.structs.replace(message, role="user") if message.role == "system" else message
            for message in messages
        )
    )


def _with_tools_as_text(messages: Messages) -> Messages:
    if all(message.role != "tool" and not message.tool_calls for message in messages):
        return messages
    names: dict[str, str] = {}
    texts = []
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool":
            name = names.get(message.tool_call_id)
            message = Message("user", result_as_text(name, message.content))
        elif message.tool_calls:
            calls = "\n".join(map(call_as_text, message.tool_calls))
            content = _BETWEEN.join(filter(None, (message.content, calls)))
            message = msgspec.structs.replace(message, content=content, tool_calls=())
        texts.append(message)
    return _merged(tuple(texts))


def call_as_text(call: ToolUse) -> str:
    """Return a tool call as the text of an assistant's turn."""
    name = msgspec.json.encode(call.name).decode()
    return f'{OPENING}\n{{"name": {name}, "arguments": {call.arguments}}}\n{CLOSING}'


def result_as_text(name: str | None, content: str) -> str:
    """Return a tool's result as the text of a user's turn; `name` is None if it is unknown."""
    return f"The function {name} returned:\n{content}" if name else f"Returned:\n{content}"


def _merged(messages: Messages, *, calls_apart: bool = False) -> Messages:
    """Merge the turns of one role that follow each other, except results of tools.

    With `calls_apart`, turns with tool calls are not merged with turns without.
    """
    merged: list[Message] = []
    for (role, _), run in groupby(
        messages, lambda message: (message.role, calls_apart and bool(message.tool_calls))
    ):
        turns = list(run)
        merged += turns if role == "tool" or len(turns) == 1 else [_joined(turns)]
    return tuple(merged)


def _joined(turns: Sequence[Message]) -> Message:
    """Return several turns of one role as one turn."""
    return Message(
        turns[0].role,
        _BETWEEN.join(turn.content for turn in turns if turn.content),
        _BETWEEN.join(turn.reasoning for turn in turns if turn.reasoning),
        tuple(call for turn in turns for call in turn.tool_calls),
    )


def _with_user_turns(messages: Messages) -> Messages:
    """Add an empty user's turn before a first turn of another role and after unanswered calls."""
    begin = 1 if messages[0].role == "system" else 0
    empty = (Message("user", ""),)
    if begin == len(messages) or messages[begin].role != "user":
        messages = (*messages[:begin], *empty, *messages[begin:])
    return messages + empty if messages[-1].tool_calls else messages


def _with_short_ids(messages: Messages) -> Messages:
    """Give tool calls ids of nine characters: some templates refuse every other length."""
    return tuple(
        msgspec.structs.replace(
            message,
            tool_calls=tuple(
                msgspec.structs.replace(call, id=_short_id(call.id)) for call in message.tool_calls
            ),
            tool_call_id=_short_id(message.tool_call_id) if message.role == "tool" else "",
        )
        if message.tool_calls or message.role == "tool"
        else message
        for message in messages
    )


def _short_id(call_id: str) -> str:
    if len(call_id) == 9 and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def with_begun_turn(
    messages: Messages, content: str, reasoning: str = "", *, continues: bool
) -> Messages:
    """Return the conversation with what an answer has so far as its last turn.

    `continues`: the last turn is the assistant's already, and the answer goes on with it.
    """
    *before, begun = messages if continues else (*messages, Message("assistant", ""))
    content, reasoning = begun.content + content, begun.reasoning + reasoning
    return (*before, msgspec.structs.replace(begun, content=content, reasoning=reasoning))


def turn(message: Message, *, reasoning_as: str) -> dict[str, Any]:
    """Return one turn; `reasoning_as` is the engine's key for the turn's reasoning."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn[reasoning_as] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn
