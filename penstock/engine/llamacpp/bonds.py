"""The bonds of an answer over llama.cpp: a schema, a grammar, or the form of tool calls.

In: what a request binds its answer with. Out: llama.cpp's parameters, or how tools are shown and
called, or a refusal. All of it is compiled here, as llama.cpp will compile it. So this runs in a
process with limits: `make` makes the function for `process.bounded`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from penstock.engine.compiled import InvalidSchemaError, TooComplexError, Vocabulary
from penstock.engine.gbnf import is_narrow
from penstock.engine.grammar import (
    RELAXED_SCHEMA,
    RELAXED_TOOLS,
    bound_tools,
    compact_schema,
    freely_spelled,
    is_json,
    opened_tools,
    parameters_in,
    try_out_schema,
)
from penstock.engine.lark import checked, lark_of, recogniser_of, with_free_spelling
from penstock.engine.llamacpp.gguf import vocabulary
from penstock.engine.tools import CallForm
from penstock.request import Grammar, Request

About = Literal["schema", "grammar", "tools"]

LEFT_OUT_BUDGET = "thinking_budget (left out)"
"""The note on a request whose thinking budget was left out."""


class Bond(msgspec.Struct, frozen=True):
    """The fields of a `Request` that bind its answer to a form, and two of the model's.

    `spells`: the answer may contain the text of a control token. `shows_tools`: the chat template
    has a form for tools and their calls.
    """

    json_schema: str | None
    lax_schema: bool
    grammar: Grammar | None
    tools: str | None
    tool_call_required: bool
    parallel_calls: bool
    spells: bool
    shows_tools: bool

    @property
    def is_about(self) -> About:
        """Return what binds the answer."""
        if self.tools is not None:
            return "tools"
        return "schema" if self.grammar is None else "grammar"

    @classmethod
    def of(cls, request: Request, *, spells: bool, shows_tools: bool) -> "Bond":
        """Return the bond of a request."""
        return cls(
            request.json_schema,
            request.lax_schema,
            request.grammar,
            request.tools,
            request.tool_call_required,
            request.parallel_calls,
            spells,
            shows_tools,
        )


class Bound(msgspec.Struct, frozen=True, tag=True):
    """llama.cpp's parameters for a bound answer: a schema or a grammar, or neither.

    `language` says how a whole answer is recognised: as any JSON, or by the grammar `lark`.
    """

    json_schema: str | None = None
    grammar: str | None = None
    language: Literal["any", "json", "lark"] = "any"
    lark: str = ""
    notes: tuple[str, ...] = ()

    @property
    def params(self) -> dict[str, Any]:
        """Return llama.cpp's parameters."""
        if self.json_schema is not None:
            return {"json_schema": msgspec.Raw(self.json_schema.encode())}
        return {} if self.grammar is None else {"grammar": self.grammar}

    async def recogniser(self) -> Callable[[str], bool] | None:
        """Return a function that recognises a whole answer, None if any text is whole."""
        if self.language == "lark":
            return await asyncio.to_thread(recogniser_of, self.lark)
        return is_json if self.language == "json" else None


class Tools(msgspec.Struct, frozen=True, tag=True):
    """How a request's tools are shown to the model, and how it calls them.

    `shown` are the tools for the chat template, None if the template has no place for them.
    `form` is the form of the calls, None for the template's own. `spells`: the form contains the
    text of a control token.
    """

    shown: str | None
    form: CallForm | None
    notes: tuple[str, ...] = ()
    spells: bool = False


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The answer cannot be bound by what it `is_about`; `why` continues a sentence."""

    is_about: About
    why: str
    is_too_complex: bool = False

    @classmethod
    def because(cls, is_about: About, error: InvalidSchemaError) -> "Refused":
        """Return the refusal for an error."""
        return cls(is_about, str(error), isinstance(error, TooComplexError))


Outcome = Bound | Tools | Refused


class UnboundError(Exception):
    """llama.cpp cannot bind an answer as the request asks; the message says why."""

    def __init__(self, refused: Refused) -> None:
        about = refused.is_about
        cannot = "use these tools" if about == "tools" else f"enforce this {about}"
        super().__init__(f"llama.cpp cannot {cannot}: {refused.why}.")
        self.code = "schema_too_complex" if refused.is_too_complex else f"invalid_{about}"


def make(model: str) -> Callable[[bytes], bytes]:
    """Return the function that turns an encoded `Bond` into an encoded `Outcome`.

    `model` is the path of the GGUF file with the vocabulary.
    """
    Vocabulary(*vocabulary(model)).use()
    decode = msgspec.msgpack.Decoder(Bond).decode
    encode = msgspec.msgpack.Encoder().encode

    def bind_encoded(bond: bytes) -> bytes:
        return encode(bind(decode(bond)))

    return bind_encoded


def bind(bond: Bond) -> Outcome:
    """Return what binds the answer, compiled and tried out."""
    if bond.tools is not None:
        return _with_tools(bond)
    try:
        return _with_schema(bond) if bond.grammar is None else _with_grammar(bond)
    except InvalidSchemaError as error:
        return Refused.because(bond.is_about, error)


def _with_schema(bond: Bond) -> Bound:
    assert bond.json_schema is not None
    schema, is_relaxed = compact_schema(bond.json_schema, lax=bond.lax_schema)
    notes = (RELAXED_SCHEMA,) * is_relaxed
    if not bond.spells:
        try_out_schema(schema)
        return Bound(schema, language="json", notes=notes)
    return Bound(grammar=checked(freely_spelled(schema)), language="json", notes=notes)


def _with_grammar(bond: Bond) -> Bound:
    assert bond.grammar is not None
    lark = lark_of(bond.grammar)
    grammar = checked(with_free_spelling(lark)) if bond.spells else lark
    return Bound(grammar=grammar, language="lark", lark=lark)


def _with_tools(bond: Bond) -> Tools | Refused:
    """Return how tools are shown and called.

    The template's own form of calls is used if llama.cpp can bind the answer to it: llama.cpp
    cannot force a call, knows no answer that is either a call or follows a schema, takes the text
    of control tokens for the tokens (`spells`), and binds only narrow tools at a bounded cost.
    """
    assert bond.tools is not None
    must_bind = bond.tool_call_required or bond.json_schema is not None or bond.spells
    try:
        if bond.shows_tools and not must_bind:
            shown, is_relaxed = bound_tools(bond.tools, is_gbnf=True)
            if is_narrow(parameters_in(shown)):
                return Tools(shown, None, (RELAXED_TOOLS,) * is_relaxed)
        tools, is_relaxed = bound_tools(bond.tools, is_gbnf=False)
    except InvalidSchemaError as error:
        return Refused.because("tools", error)
    schema: str | None = None
    notes = (RELAXED_TOOLS,) * is_relaxed
    if bond.json_schema is not None:
        try:
            schema, is_relaxed = compact_schema(bond.json_schema, lax=bond.lax_schema)
        except InvalidSchemaError as error:
            return Refused.because("schema", error)
        notes += (RELAXED_SCHEMA,) * is_relaxed
    form = CallForm(tools, bond.tool_call_required, bond.parallel_calls, schema)
    try:
        _check_form(form, bond.spells)
    except InvalidSchemaError:
        form = msgspec.structs.replace(form, tools=opened_tools(bond.tools, form.tools))
        notes = tuple(dict.fromkeys((*notes, RELAXED_TOOLS)))
        try:
            _check_form(form, bond.spells)
        except TooComplexError as error:
            return Refused.because("tools", error)
        except InvalidSchemaError:
            return Refused("tools", "their parameters are too large together")
    if not bond.shows_tools:
        return Tools(None, form, notes, bond.spells)
    shown, _ = bound_tools(bond.tools, is_gbnf=True, lax=True)
    return Tools(shown, form, notes, bond.spells)


def _check_form(form: CallForm, spells: bool) -> None:
    lark = checked(form.lark())
    if spells:
        checked(with_free_spelling(lark))


def has_useless_budget(request: Request, tools: Tools | None) -> bool:
    """Return True if the request has a thinking budget that its form of calls rules out."""
    return tools is not None and tools.form is not None and request.thinking_budget is not None


def refusal_of_fields(request: Request, tools: Tools | None) -> tuple[str, str] | None:
    """Return the code and the sentence that refuse fields which llama.cpp cannot combine."""
    is_bound = request.json_schema is not None or request.grammar is not None
    if (request.ignore_eos or request.min_tokens) and is_bound:
        return (
            "unsupported_field",
            "llama.cpp cannot lengthen an answer that a schema or a grammar binds. Leave out"
            " ignore_eos and min_tokens.",
        )
    if request.tools is not None and (request.min_tokens or request.stop_token_ids):
        return (
            "unsupported_field",
            "llama.cpp does not support min_tokens and stop_token_ids together with tools. Leave"
            " out min_tokens and stop_token_ids, or the tools.",
        )
    if has_useless_budget(request, tools) and not request.lax_budget:
        return (
            "unsupported_field",
            "llama.cpp supports a thinking budget with tools only for models whose chat template"
            " shows tools, and without a required call or a schema. Leave out the thinking budget.",
        )
    return None
