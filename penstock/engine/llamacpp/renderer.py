"""Chooses who renders a conversation: the template in this process, or llama.cpp's server.

In: a request's messages. Out: the prompt's text, the same as llama.cpp's own. At the start both
render the same conversations. A template that llama.cpp shows differently (it has code of its own
for some models) is left to llama.cpp, whose route takes a round trip, and longer than linear time.
Not known here: tokens.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain

import msgspec

from penstock.engine.llamacpp.rendering import ChatTemplate
from penstock.engine.turns import Messages, TemplateRefusedError
from penstock.request import Message, Request, ToolUse

log = logging.getLogger(__name__)

Ask = Callable[[Request, Messages], Awaitable[str]]
"""Has llama.cpp render a conversation. Raises TemplateRefusedError."""
Prepare = Callable[[Callable[[], str]], Awaitable[str]]
"""Runs a rendering, here or in a thread."""

MAX_OPENINGS = 64
MAX_KWARGS = 1024
THOUGHT, ANSWER = "zthoughtz", "zanswerz"
_USER = Message("user", " Is 1 < 2 & 'é' > \"\\d\"?\n")
_SAID = Message("assistant", " Yes.\n\nIt is. ")
_SYSTEM = Message("system", " Answer <b>briefly</b>.\n")
_THOUGHT = Message("assistant", "Yes.", "I think.")
_CALL = ToolUse("abcdefghi", "look_up", '{"name": "<é>", "number": 1.5, "list": [1, null, true]}')
_CALLED = Message("assistant", "", tool_calls=(_CALL,))
_RESULT = Message("tool", '{"found": "<é>"}', tool_call_id=_CALL.id)
_TOOLS = (
    '[{"type": "function", "function": {"name": "look_up", "description": "Finds \'<é>\' & more.",'
    ' "parameters": {"type": "object", "properties": {"name": {"type": "string"}, "number":'
    ' {"type": "number"}, "list": {"type": "array"}}, "required": ["name"]}}}]'
)
PLAIN = (
    (_USER,),
    (_SYSTEM, _USER),
    (_SYSTEM, _USER, _SAID, _USER),
    (_USER, _THOUGHT, _USER),
    (_USER, _SAID),
    (_USER, _THOUGHT),
)
WITH_TOOLS = (
    (_USER, _CALLED, _RESULT),
    (_SYSTEM, _USER, _CALLED, _RESULT, _SAID, _USER),
    (_USER, _SAID, _USER),
)
VARIANTS = (
    Request("", 1),
    Request("", 1, reasoning_effort="none"),
    Request("", 1, reasoning_effort="high"),
    Request("", 1, open_answer=False),
)


class Renderer:
    """Renders with `template`, None to leave everything to llama.cpp, which `ask` asks."""

    def __init__(self, template: ChatTemplate | None, ask: Ask) -> None:
        self._template = template
        self._ask = ask
        self._agrees = template is not None
        self._agrees_on_tools = self._agrees
        self._openings: dict[tuple[object, ...], tuple[str, ...] | None] = {}

    async def compare(self) -> None:
        """Leave to llama.cpp what it renders differently."""
        plain = [(each, messages) for each in VARIANTS for messages in PLAIN]
        self._agrees = self._agrees and await self._agree(plain)
        tools = msgspec.structs.replace(VARIANTS[0], tools=_TOOLS)
        with_tools = [
            *((tools, messages) for messages in chain(WITH_TOOLS, PLAIN[:4])),
            *((VARIANTS[0], messages) for messages in WITH_TOOLS),
        ]
        self._agrees_on_tools = self._agrees and await self._agree(with_tools)
        if not self._agrees:
            log.info("llama.cpp renders this model's chat template, which has a form of its own.")
        elif not self._agrees_on_tools:
            log.info("llama.cpp renders this model's tools, which have a form of its own.")

    async def render(self, request: Request, messages: Messages, prepare: Prepare) -> str:
        """Return the prompt of these messages. Raises TemplateRefusedError."""
        if not (self._agrees_on_tools if _has_tools(request, messages) else self._agrees):
            return await self._ask(request, messages)
        return await self._render(request, messages, prepare)

    async def _render(self, request: Request, messages: Messages, prepare: Prepare) -> str:
        template = self._template
        assert template is not None
        if not _is_begun(request, messages):
            return await prepare(
                lambda: template.render(request, messages, opens_answer=request.open_answer)
            )
        opening = await self._opening(template, request, messages[-1])
        if opening is None or len(messages) == 1 or messages[-2].role == "assistant":
            return await self._ask(request, messages)
        before = await prepare(lambda: template.render(request, messages[:-1], opens_answer=False))
        parts = {THOUGHT: messages[-1].reasoning, ANSWER: messages[-1].content}
        return before + "".join(parts.get(each, each) for each in opening)

    async def _opening(
        self, template: ChatTemplate, request: Request, begun: Message
    ) -> tuple[str, ...] | None:
        """Return what llama.cpp puts before and into a begun answer, None if that is not clear.

        The text depends on llama.cpp's reading of the template, so llama.cpp is asked once for
        every kind of request. `THOUGHT` and `ANSWER` stand for the begun answer's texts.
        """
        if begun.tool_calls or request.tools is not None:
            return None
        kwargs = request.template_kwargs or ""
        kind = (
            begun.role,
            bool(begun.reasoning),
            bool(begun.content),
            request.continue_last_message,
            request.reasoning_effort,
            kwargs,
        )
        if kind in self._openings:
            return self._openings[kind]
        before = (Message("user", "A"),)
        thought, answer = THOUGHT if begun.reasoning else "", ANSWER if begun.content else ""
        whole = await self._ask(request, (*before, Message(begun.role, answer, thought)))
        try:
            start = template.render(request, before, opens_answer=False)
        except TemplateRefusedError:
            return None
        opening = _parts(whole.removeprefix(start), thought, answer)
        if not whole.startswith(start):
            opening = None
        if len(kwargs) <= MAX_KWARGS:
            if len(self._openings) >= MAX_OPENINGS:
                self._openings.pop(next(iter(self._openings)))
            self._openings[kind] = opening
        return opening

    async def _agree(self, conversations: Iterable[tuple[Request, Messages]]) -> bool:
        """Return True if llama.cpp and the template here render these conversations alike."""

        async def at_once(work: Callable[[], str]) -> str:
            return work()

        for request, messages in conversations:
            try:
                ours = await self._render(request, messages, at_once)
            except TemplateRefusedError:
                ours = None
            try:
                theirs = await self._ask(request, messages)
            except TemplateRefusedError:
                theirs = None
            if ours != theirs:
                return False
        return True


def _is_begun(request: Request, messages: Messages) -> bool:
    """Return True if the answer goes on from the last turn."""
    return request.continue_last_message or messages[-1].role == "assistant"


def _has_tools(request: Request, messages: Messages) -> bool:
    return request.tools is not None or any(
        message.role == "tool" or message.tool_calls for message in messages
    )


def _parts(text: str, *marks: str) -> tuple[str, ...] | None:
    """Return the text cut at the marks, which it must contain once each and in this order."""
    parts: list[str] = []
    for mark in filter(None, marks):
        if text.count(mark) != 1:
            return None
        before, _, text = text.partition(mark)
        parts += (before, mark)
    return (*parts, text)
