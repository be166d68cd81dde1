"""Makes the prompt of a request: rendered, tokenised, and refused if it cannot fit.

In: requests, how their tools are shown, and how llama.cpp renders a conversation. Out: the ids of
the prompt's tokens, the same as llama.cpp's own. Both steps run in this process; a long prompt is
prepared in a thread, one at a time, while tokens are delivered. Not known here: how an answer is
bound and generated.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from penstock.engine.control import ControlTokens, broken_tools
from penstock.engine.lengths import Lengths
from penstock.engine.llamacpp.bonds import Refused, Tools, UnboundError
from penstock.engine.llamacpp.gaps import prompt_with_gap
from penstock.engine.llamacpp.gguf import marked_tokens
from penstock.engine.llamacpp.renderer import Renderer
from penstock.engine.llamacpp.vocabulary import Prompt, Vocabulary
from penstock.engine.tasks import SHORT_CHARACTERS, check_length, is_short
from penstock.engine.tools import with_instructions
from penstock.engine.turns import Messages, Template, TemplateRefusedError
from penstock.errors import StartError
from penstock.request import Message, Request

Result = TypeVar("Result")

SHORT_PIECES = 256
CONTROL_TOKENS = "messages (control tokens)"
"""The note on a conversation with tools whose texts of control tokens were broken."""
# A conversation that every template shows.
PROBE = (Message("user", "Hello"),)


class Shown(NamedTuple):
    """A request as the model's chat template shows it, and its prompt."""

    request: Request
    tools: Tools | None
    prompt: Prompt
    notes: tuple[str, ...] = ()
    """The names of the request's changed fields, for `Sink.accepted`."""


class Prompts:
    """Makes the prompts for a model with a context of `context_length` tokens."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        control: ControlTokens,
        renderer: Renderer,
        lengths: Lengths,
        context_length: int,
    ) -> None:
        self._vocabulary = vocabulary
        self._control = control
        self._renderer = renderer
        self._context_length = context_length
        self._lengths = lengths
        self._template = Template()
        self._thread = ThreadPoolExecutor(1, "prompts")

    async def probe(self) -> None:
        """Find out which conversations the model's template shows."""
        self._template = await Template.probe(partial(self._text_of, Request("", 1)))

    async def show(self, request: Request, tools: Tools | None) -> Shown:
        """Return the request as the model's template shows it.

        Raises UnboundError if the template cannot show the tools, TemplateRefusedError and
        TemplateTooCostlyError.
        """
        request, tools = self._without_control_texts(request, tools)
        starts_from_ids = tools is None or tools.form is not None
        if request.gap is not None:
            gap_tokens = self._vocabulary.gap_tokens()
            assert gap_tokens is not None
            prompt = prompt_with_gap(gap_tokens, request.prompt or "", request.gap)
            return Shown(request, tools, prompt)
        if request.messages is None or (request.prompt_ids is not None and starts_from_ids):
            return Shown(request, tools, [request.prompt or ""])
        messages = request.messages
        if tools is not None:
            if tools.shown is None and request.tools is not None:
                messages = with_instructions(
                    messages, request.tools, must_call=request.tool_call_required
                )
            request = msgspec.structs.replace(request, tools=tools.shown)
        messages, prompt, notes = await self._show_messages(request, messages)
        request = msgspec.structs.replace(request, messages=messages)
        return Shown(request, tools, prompt, notes)

    async def _show_messages(
        self, request: Request, messages: Messages
    ) -> tuple[Messages, Prompt, tuple[str, ...]]:
        """Return the messages as the template shows them, the prompt, and notes on changes."""
        try:
            return await self._template.show(messages, partial(self.render, request))
        except TemplateRefusedError:
            if request.tools is None:
                raise
            try:  # are the tools at fault, or the messages?
                await self.render(request, PROBE)
            except TemplateRefusedError:
                why = "the model's chat template does not support them"
                raise UnboundError(Refused("tools", why)) from None
            raise

    def _without_control_texts(
        self, request: Request, tools: Tools | None
    ) -> tuple[Request, Tools | None]:
        """Break the texts of control tokens if llama.cpp itself renders the conversation.

        It does so for tools in the template's own form, and would make control tokens of them.
        """
        if tools is None or tools.form is not None:
            return request, tools
        assert tools.shown is not None
        sent, shown = msgspec.to_builtins(request.messages), json.loads(tools.shown)
        if not self._control.found_in([sent, shown]):
            return request, tools
        messages = msgspec.convert(self._control.break_in(sent), Messages)
        shown = json.dumps(broken_tools(shown, self._control), ensure_ascii=False)
        notes = (*tools.notes, CONTROL_TOKENS)
        tools = msgspec.structs.replace(tools, shown=shown, notes=notes)
        return msgspec.structs.replace(request, messages=messages), tools

    async def render(self, request: Request, messages: Messages) -> Prompt:
        """Return the prompt with these messages. No text in them or in tools is a control token."""
        request = msgspec.structs.replace(request, messages=messages)
        hide = partial(self._hide, request, messages)
        request, messages, hidden = await self._prepare(is_short(request), hide)
        text = await self._text_of(request, messages)
        if not hidden:
            return [text]
        cut = partial(self._control.pieces_of, text, hidden)
        return await self._prepare(len(text) <= SHORT_CHARACTERS, cut)

    async def ids_of(self, prompt: Prompt, *, add_special: bool = True) -> tuple[int, ...]:
        """Return the prompt's tokens. Raises PromptTooLongError if they cannot fit.

        With `add_special`, the tokens that begin and end every text of the model are added.
        """
        size = sum(len(piece) for piece in prompt if isinstance(piece, str))
        work = partial(self._ids_of, prompt, add_special=add_special)
        return await self._prepare(size <= SHORT_CHARACTERS, work)

    def _ids_of(self, prompt: Prompt, *, add_special: bool) -> tuple[int, ...]:
        check_length(prompt, self._lengths, self._context_length)
        return tuple(self._vocabulary.ids_of_prompt(prompt, add_special=add_special))

    async def text_of(self, prompt: Prompt) -> str:
        """Return the prompt's text, with the texts of control tokens."""
        is_short = len(prompt) <= SHORT_PIECES
        return await self._prepare(is_short, partial(self._vocabulary.text_of_prompt, prompt))

    def _hide(
        self, request: Request, messages: Messages
    ) -> tuple[Request, Messages, dict[str, str]]:
        """Return the request and the messages with placeholders for control tokens' texts."""
        tools = json.loads(request.tools or "null")
        kwargs = json.loads(request.template_kwargs or "null")
        sent = [msgspec.to_builtins(messages), tools, kwargs]
        if not self._control.found_in(sent):
            return request, messages, {}
        (shown, tools, kwargs), hidden = self._control.hide_in(sent)
        request = msgspec.structs.replace(
            request,
            tools=None if tools is None else json.dumps(tools, ensure_ascii=False),
            template_kwargs=None if kwargs is None else json.dumps(kwargs, ensure_ascii=False),
        )
        return request, msgspec.convert(shown, Messages), hidden

    async def _text_of(self, request: Request, messages: Messages) -> str:
        short = is_short(msgspec.structs.replace(request, messages=messages))
        return await self._renderer.render(request, messages, partial(self._prepare, short))

    async def _prepare(self, is_short: bool, work: Callable[[], Result]) -> Result:
        """Do a part of the work, in the thread unless the prompt is short."""
        if is_short:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def lengths_of(vocabulary: Vocabulary) -> Lengths:
    """Return the least lengths of texts in this vocabulary's tokens."""
    tokens = map(vocabulary.bytes_of, range(vocabulary.size))
    if not vocabulary.keeps_every_byte():
        return Lengths(())
    return Lengths(tokens, strips=vocabulary.strips())


def control_tokens_of(path: str, vocabulary: Vocabulary) -> tuple[ControlTokens, dict[int, str]]:
    """Return the tokens that llama.cpp makes of a text only if it looks for control tokens.

    Also returns the texts of all tokens that llama.cpp reports without text, by id. Raises
    StartError if the file cannot be read.
    """
    try:
        names = marked_tokens(path)
    except (OSError, ValueError) as error:
        raise StartError(
            f"The model's vocabulary cannot be read: {error}.", "Is the GGUF file complete?"
        ) from None
    found = {
        text: token_id
        for token_id, text in names.items()
        if vocabulary.ids_of(text) == [token_id] != vocabulary.ids_of(text, parse_special=False)
    }
    return ControlTokens(found), names
