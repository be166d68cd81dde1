"""Conversations in vLLM: rendering, structured output, tool calls and reasoning.

In: requests. Out: vLLM's arguments for their prompts, and the `AnswerFormat` of their answers. The
marks in the chat template separate the reasoning, unless the operator names one of vLLM's parsers
(`reasoning_parser`). Such a parser knows forms without marks, and lets vLLM enforce a grammar from
the end of the reasoning on. Another parser of vLLM's finds tool calls in the model's own form. The
operator must name it (`tool_call_parser`), because a model's files do not say which parser fits.
Without it, and where the model's own form cannot be enforced, calls have Penstock's form.

vLLM's parsers: https://docs.vllm.ai/en/stable/features/tool_calling.html
"""

import difflib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import xgrammar
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.hf import resolve_chat_template
from vllm.renderers.params import ChatParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.tool_parsers import ToolParserManager
from vllm.utils.mistral import is_mistral_tokenizer

from penstock.engine.control import ControlTokens
from penstock.engine.grammar import MAX_SCHEMA_INTEGER, check_bounds, check_integers
from penstock.engine.protocol import Feature
from penstock.engine.reasoning import Splitter, marks_in, reasoning_features
from penstock.engine.tools import CallForm
from penstock.engine.turns import turn
from penstock.engine.vllm.formats import (
    AnswerFormat,
    AnswerReader,
    Begun,
    check_shown,
    opens_call,
)
from penstock.engine.vllm.lengths import lengths_of
from penstock.engine.vllm.structures import Structure
from penstock.engine.vllm.tags import tag_of, with_little_space
from penstock.errors import StartError
from penstock.request import Grammar, Message, Request

MAX_TOOLS_INTEGER = 2**63 - 1  # xgrammar turns greater integers into floats
AT_ONCE: dict[str, Any] = {"reasoning_ended": True}
"""vLLM's arguments for a structure that begins with the answer's first token."""
# A conversation and tools to test the template with.
PROBE = (Message("user", "Hello"),)
PROBE_TOOLS = (
    '[{"type": "function", "function": {"name": "probe", "description": "", "parameters":'
    ' {"type": "object", "properties": {}}}}]'
)


class Chats:
    """The chat template and the parsers of the served model.

    `config` is vLLM's configuration, `tool_parser` the name of one of its parsers or None. Raises
    StartError if the tokenizer lacks something that a parser needs.
    """

    def __init__(self, config: Any, tool_parser: str | None) -> None:
        self._model_config = config.model_config
        self._reasoning_parser: str = config.structured_outputs_config.reasoning_parser
        self._has_tool_parser = tool_parser is not None
        self.renders_tools = True
        """Whether the template renders tools, once that is known."""
        self.tokenizer: Any = cached_tokenizer_from_config(config.model_config)
        self.control = control_tokens(self.tokenizer)
        self.lengths = lengths_of(self.tokenizer)
        self._parser = parser_class(config, tool_parser, self._reasoning_parser, self.tokenizer)
        self._template = template_of(config.model_config, self.tokenizer)
        self._marks = marks_in(self._template)
        special = getattr(self.tokenizer, "all_special_tokens", ())
        self._marks_are_special = any(mark in special for mark in self._marks or ())

    @property
    def shows_tools(self) -> bool:
        """True if the template shows the tools, in the form that a parser of vLLM's reads."""
        return self._has_tool_parser and self.renders_tools

    def features(self) -> tuple[Feature, ...]:
        """Return the optional features that the template and the parsers support."""
        effort = reasoning_features(
            self._template,
            has_effort="reasoning_effort" in self._template,
            has_parser=bool(self._reasoning_parser),
        )
        return ("tools", "tools_with_schema", *effort)

    def turns(self, request: Request) -> list[dict[str, Any]]:
        """Return the conversation in a new list, because vLLM changes it."""
        return [turn(message, reasoning_as="reasoning") for message in request.messages or ()]

    def params(self, request: Request) -> ChatParams:
        """Return the parameters for rendering the conversation."""
        tools = None if request.tools is None else json.loads(request.tools)
        kwargs = {
            "add_generation_prompt": request.open_answer and not request.continue_last_message,
            "continue_final_message": request.continue_last_message,
            "tools": tools,
            **template_kwargs(request),
        }
        if is_fast(self.tokenizer):
            kwargs["tokenize"] = False  # the text's length is checked first
        return ChatParams(
            chat_template_kwargs=kwargs, tool_choice=None if tools is None else choice_of(request)
        )

    def hide_control_tokens(
        self, turns: list[dict[str, Any]], params: ChatParams
    ) -> tuple[list[dict[str, Any]], ChatParams, dict[str, str]]:
        """Return the conversation and parameters with placeholders for control tokens' texts.

        Also returns the text of each placeholder.
        """
        kwargs = params.chat_template_kwargs
        if not self.control.found_in([turns, kwargs]):
            return turns, params, {}
        (turns, kwargs), hidden = self.control.hide_in([turns, kwargs])
        return turns, replace(params, chat_template_kwargs=kwargs), hidden

    def ids_of(self, pieces: list[str | int]) -> list[int]:
        """Return the tokens of a rendered prompt; only the template's control tokens are such."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                tokens = self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)
                ids += tokens["input_ids"]
        return ids

    def answer_format(self, request: Request, begun: Begun) -> AnswerFormat:
        """Return the format of the answer, which may take a while if the request has tools.

        Raises InvalidSchemaError if vLLM cannot enforce the tools' schemas, and
        CannotContinueError if the answer so far ends within the beginning of a call.
        """
        if request.tools is not None:
            if request.json_schema is not None or not self.shows_tools:
                return self._own_format(request, begun)
            return self._parsed_format(request, begun)
        if request.json_schema is not None:
            schema = json.loads(request.json_schema)
            check_integers(schema, MAX_SCHEMA_INTEGER)
            check_bounds(schema)
            return AnswerFormat(
                StructuredOutputsParams(json=request.json_schema, disable_any_whitespace=True),
                AT_ONCE,
            )
        if request.grammar is not None:
            return AnswerFormat(structure_of(request.grammar), AT_ONCE)
        if request.separate_reasoning and self._reasoning_parser:
            return self._parsed_format(request, begun)
        shows = self._marks_are_special and request.separate_reasoning
        splitter, _ = self._split(self._marks_for(request), begun, shows_special_tokens=shows)
        return AnswerFormat(shows_special_tokens=shows, splitter=splitter)

    def _marks_for(self, request: Request) -> tuple[str, str] | None:
        """Return the marks that separate the answer's reasoning, if marks separate it."""
        is_split = request.separate_reasoning and not self._reasoning_parser
        return self._marks if is_split else None

    def _split(
        self, marks: tuple[str, str] | None, begun: Begun, *, shows_special_tokens: bool
    ) -> tuple[Splitter | None, str]:
        """Return the splitter for the rest of the answer, and the text of the answer so far."""
        text = begun.text(self.tokenizer, shows_special_tokens)
        if marks is None:
            return None, text
        splitter = begun.splitter(marks, text, self.tokenizer)
        return splitter, splitter.answer_in(text)

    def _parsed_format(self, request: Request, begun: Begun) -> AnswerFormat:
        """Return the format of an answer that vLLM's parsers read."""
        # A required call comes first, without reasoning, unless vLLM knows where reasoning ends.
        marks = None if request.tool_call_required else self._marks_for(request)
        parser, chat = self._parser_for(request)
        structure = chat.extract_structured_outputs()
        if structure is not None and structure.structural_tag is not None:
            tag = json.dumps(with_little_space(json.loads(structure.structural_tag)))
            structure = StructuredOutputsParams(structural_tag=tag)
        if request.tool_call_required and structure is None:  # this parser cannot force a call
            return self._own_format(request, begun)
        shows = not chat.skip_special_tokens or (marks is not None and self._marks_are_special)
        splitter, answer = self._split(marks, begun, shows_special_tokens=shows)
        reader = AnswerReader(parser, chat, begun, marks, self.tokenizer)
        parsed = reader.read_again(answer)
        if request.tools is not None:
            check_shown(answer, parsed)
        return AnswerFormat(
            structure,
            {} if structure is None else self._beginning(request, begun, parser, chat),
            shows,
            splitter,
            reader.parse,
            parallel_calls=request.parallel_calls,
        )

    def _own_format(self, request: Request, begun: Begun) -> AnswerFormat:
        """Return the format of an answer whose calls have Penstock's own form.

        Special tokens are shown, because xgrammar takes them for their text.
        """
        assert request.tools is not None
        form = CallForm(
            request.tools, request.tool_call_required, request.parallel_calls, request.json_schema
        )
        splitter, answer = self._split(self._marks_for(request), begun, shows_special_tokens=True)
        beginning, parse = AT_ONCE, None
        if request.separate_reasoning and self._reasoning_parser:
            parser, chat = self._parser_for(msgspec.structs.replace(request, tools=None))
            reader = AnswerReader(parser, chat, begun, None, self.tokenizer)
            parsed = reader.read_again(answer)
            answer = (parsed.content if parsed is not None else None) or ""
            beginning, parse = self._beginning(request, begun, parser, chat), reader.parse
        tag = tag_of(
            form,
            ends_thought="" if splitter is None else splitter.ends_thought,
            is_open=opens_call(answer),
        )
        structure = StructuredOutputsParams(structural_tag=tag)
        return AnswerFormat(structure, beginning, True, splitter, parse, form, answer)

    def _parser_for(self, request: Request) -> tuple[Any, Any]:
        """Return a new parser of vLLM's, and the request in the form that the parser needs."""
        assert self._parser is not None
        chat = ChatCompletionRequest(
            messages=self.turns(request),
            tools=None if request.tools is None else json.loads(request.tools),
            tool_choice="none" if request.tools is None else choice_of(request),
            parallel_tool_calls=request.parallel_calls,
            reasoning_effort=request.reasoning_effort,
        )

        def make() -> Any:
            assert self._parser is not None
            return self._parser(
                self.tokenizer,
                chat.tools,
                model_config=self._model_config,
                chat_template_kwargs=template_kwargs(request),
            )

        return make(), make().adjust_request(chat)

    def _beginning(self, request: Request, begun: Begun, parser: Any, chat: Any) -> dict[str, Any]:
        """Return vLLM's arguments for where the structure begins.

        It begins after the reasoning, which only a parser can find; without a parser, at once.
        """
        if parser.reasoning_parser is None:
            return AT_ONCE
        return {
            "reasoning_ended": chat.resolve_reasoning_ended(parser, begun.ids()),
            "reasoning_parser_kwargs": {"chat_template_kwargs": template_kwargs(request)},
        }


def control_tokens(tokenizer: Any) -> ControlTokens:
    """Return the control tokens of a tokenizer of transformers; others keep them apart."""
    added = getattr(tokenizer, "added_tokens_decoder", {}) if is_fast(tokenizer) else {}
    return ControlTokens({each.content: number for number, each in added.items() if each.special})


def is_fast(tokenizer: Any) -> bool:
    """Return True for transformers' fast tokenizers, which can ignore control tokens."""
    return bool(getattr(tokenizer, "is_fast", False))


def choice_of(request: Request) -> str:
    """Return vLLM's `tool_choice`; if a function was named, `tools` contains only that function."""
    return "required" if request.tool_call_required else "auto"


def template_kwargs(request: Request) -> dict[str, Any]:
    """Return the template's variables: the request's own, and those for its reasoning effort."""
    kwargs: dict[str, Any] = json.loads(request.template_kwargs or "{}")
    if request.reasoning_effort is None:
        return kwargs
    if request.reasoning_effort == "none":
        return {**kwargs, "enable_thinking": False}
    return {"enable_thinking": True, **kwargs, "reasoning_effort": request.reasoning_effort}


def structure_of(grammar: Grammar) -> StructuredOutputsParams:
    """Return the structure of an answer that a grammar binds."""
    if grammar.kind == "choice":
        return StructuredOutputsParams(choice=json.loads(grammar.text))
    return StructuredOutputsParams(**{grammar.kind: grammar.text})


def structure_in(answer_format: AnswerFormat) -> Structure | None:
    """Return the structure that an answer must have, in the form in which it is compiled."""
    if (params := answer_format.structure) is None:
        return None
    for kind in ("json", "regex", "choice", "grammar", "structural_tag"):
        if (value := getattr(params, kind)) is not None:
            text = value if isinstance(value, str | list) else json.dumps(value)
            return Structure(kind, text, not params.disable_any_whitespace)
    return Structure("json", '{"type": "object"}')


def vocabulary_of(config: Any, tokenizer: Any) -> str:
    """Return the tokenizer's vocabulary in xgrammar's form, as vLLM's core makes it."""
    if is_mistral_tokenizer(tokenizer):
        info = xgrammar.TokenizerInfo(
            tokenizer.vocab,
            xgrammar.VocabType.RAW if tokenizer.is_tekken else xgrammar.VocabType.BYTE_FALLBACK,
            vocab_size=len(tokenizer.vocab),
            stop_token_ids=[tokenizer.eos_token_id],
            add_prefix_space=True,
        )
    else:
        size = config.model_config.get_vocab_size()
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    return str(info.serialize_json())


def template_of(model_config: Any, tokenizer: Any) -> str:
    """Return the model's chat template, or "" if it has no readable template."""
    if not hasattr(tokenizer, "get_chat_template"):
        return ""
    template = resolve_chat_template(tokenizer, None, None, model_config=model_config)
    return template or ""


def parser_class(
    config: Any, tool_parser: str | None, reasoning_parser: str, tokenizer: Any
) -> Any | None:
    """Return the class of a parser that combines both parsers, or None if neither is named.

    Raises StartError if a parser cannot be used with this model.
    """
    try:
        return ParserManager.get_parser(
            tool_parser_name=tool_parser,
            reasoning_parser_name=reasoning_parser,
            enable_auto_tools=tool_parser is not None,
            model_name=config.model_config.model,
            is_harmony=config.model_config.hf_config.model_type == "gpt_oss",
            # Enforce the schema of arguments whether it is `strict` or not.
            tool_strict_level="parameter",
            tokenizer=tokenizer,
        )
    except Exception as error:  # vLLM raises many types; the message is the reason
        raise StartError(
            f"vLLM's parser cannot be used with this model: {error}",
            "tool_call_parser and reasoning_parser must fit the form in which the model calls tools"
            " and reasons. vLLM's page on tool calling names the parsers for each model.",
        ) from error


def check_names(tool_parser: str | None, reasoning_parser: str | None) -> None:
    """Raise StartError if vLLM has no parser of a given name."""
    _check_name("tool_call_parser", tool_parser, ToolParserManager.list_registered())
    _check_name("reasoning_parser", reasoning_parser, ReasoningParserManager.list_registered())


def _check_name(argument: str, name: str | None, names: Iterable[str]) -> None:
    names = list(names)
    if not name or name in names:
        return
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(names)}."
    raise StartError(f"vLLM has no {argument} {name!r}.", hint)
