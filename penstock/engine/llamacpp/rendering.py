"""Renders conversations with the model's chat template, in this process.

In: the template, and a request's messages. Out: the prompt's text, the same as llama.cpp's own. The
template is the operator's, but clients choose what it shows: it runs in Jinja's sandbox, for a
bounded number of steps, up to a bounded length. Not known here: llama.cpp's server, tokens.

The variables and filters are those of Hugging Face's transformers, for which templates are written.
"""

import json
import threading
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.engine.llamacpp.props import Props
from penstock.engine.llamacpp.vocabulary import Vocabulary
from penstock.engine.turns import TemplateRefusedError, turn
from penstock.request import Message, Request

MAX_STEPS = 2_000_000
"""How often a template may look into a value; one turn takes up to fifty such steps."""
MAX_CHARACTERS = 32 * 1024 * 1024
"""How long a prompt may become: several times the largest body of a request."""
TOO_COSTLY = (
    "The model's chat template takes too long to show this conversation. Send fewer turns or fewer"
    " tools."
)


class TemplateTooCostlyError(Exception):
    """The template takes more than `MAX_STEPS` or `MAX_CHARACTERS` for the conversation."""


class ChatTemplate:
    """A chat template. `caps` is what llama.cpp found out about it; it changes the messages so.

    `begin` and `end` are the texts of the tokens of these names.

    With `drops_begin` the tokenizer adds the first token, so the prompt begins after it. Raises
    TemplateRefusedError if Jinja cannot read the template.
    """

    def __init__(
        self, source: str, caps: Props.Caps, *, begin: str, end: str, drops_begin: bool
    ) -> None:
        self._environment = _Environment()
        self._caps = caps
        self._has_parts = caps.supports_typed_content and not caps.supports_string_content
        self._begin = begin
        self._end = end
        self._drops_begin = drops_begin
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateError:
            raise TemplateRefusedError from None

    def render(
        self,
        request: Request,
        messages: tuple[Message, ...],
        *,
        opens_answer: bool,
    ) -> str:
        """Return the prompt of these messages and of everything else in the request.

        Raises TemplateRefusedError and TemplateTooCostlyError.
        """
        self._environment.begin()
        pieces: list[str] = []
        num_characters = 0
        try:
            for piece in self._template.generate(self._variables(request, messages, opens_answer)):
                pieces.append(piece)
                num_characters += len(piece)
                if num_characters > MAX_CHARACTERS:
                    raise TemplateTooCostlyError
        except TemplateTooCostlyError:
            raise
        except Exception:  # a template can raise any type
            raise TemplateRefusedError from None
        text = "".join(pieces)
        return text.removeprefix(self._begin) if self._drops_begin else text

    def _variables(
        self, request: Request, messages: tuple[Message, ...], opens_answer: bool
    ) -> dict[str, Any]:
        now = datetime.now()  # templates show the local time
        variables: dict[str, Any] = {
            "messages": self._turns(messages),
            "bos_token": self._begin,
            "eos_token": self._end,
            "enable_thinking": request.reasoning_effort != "none",
            "datetime": now.strftime("%b %d %Y"),
            "date_string": now.strftime("%d %b %Y"),
        }
        if request.tools is not None:
            variables["tools"] = [_tool(each) for each in json.loads(request.tools)]
        if request.reasoning_effort not in (None, "none"):
            variables["reasoning_effort"] = request.reasoning_effort
        if request.template_kwargs is not None:
            variables |= json.loads(request.template_kwargs)
        if opens_answer:
            variables["add_generation_prompt"] = True
        return variables

    def _turns(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        """Return the messages as llama.cpp passes them to this template."""
        turns = [turn(each, reasoning_as="reasoning_content") for each in messages]
        if turns and turns[0]["role"] == "system" and not self._caps.supports_system_role:
            system = turns.pop(0)
            if turns:
                turns[0]["content"] = f"{system['content']}\n{turns[0]['content']}"
        for each in turns:
            if self._has_parts:
                each["content"] = [{"type": "text", "text": each["content"]}]
            if self._caps.supports_object_arguments:
                for call in each.get("tool_calls", ()):
                    called = call["function"]
                    called["arguments"] = json.loads(called["arguments"])
        return turns


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which counts the steps of each thread."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            undefined=jinja2.ChainableUndefined,  # as in llama.cpp
        )
        self._thread = threading.local()
        self.filters["tojson"] = _as_json
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now}

    def begin(self) -> None:
        """Begin a rendering in this thread."""
        self._thread.num_steps = 0

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item or an attribute of a value."""
        self._step()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute or an item of a value."""
        self._step()
        return super().getattr(obj, attribute)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call a function, if it is safe."""
        self._step()
        return super().call(*args, **kwargs)

    def _step(self) -> None:
        self._thread.num_steps += 1
        if self._thread.num_steps > MAX_STEPS:
            raise TemplateTooCostlyError


def _tool(sent: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as llama.cpp shows it to a template."""
    function = sent["function"]
    shown = {
        "name": function["name"],
        "description": function.get("description", ""),
        "parameters": function.get("parameters", {}),
    }
    return {"type": "function", "function": shown}


def _as_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    """Return a value as JSON, without the escapes that Jinja adds for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)  # the local time


def template_of(props: Props, vocabulary: Vocabulary) -> ChatTemplate | None:
    """Return the model's chat template, None if only llama.cpp can read it."""
    try:
        return ChatTemplate(
            props.chat_template,
            props.chat_template_caps,
            begin=props.bos_token,
            end=props.eos_token,
            drops_begin=vocabulary.adds_begin,
        )
    except TemplateRefusedError:
        return None
