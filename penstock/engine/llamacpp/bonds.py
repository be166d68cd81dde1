"""The bonds of an answer over llama.cpp: a schema, a grammar, or the form of tool calls."""

from collections.abc import Callable
from typing import Any

import msgspec

from penstock.engine.grammar import RELAXED_SCHEMA, compact_schema, freely_spelled, is_json
from penstock.engine.lark import lark_of, recogniser_of, with_free_spelling
from penstock.engine.tools import CallForm
from penstock.request import Request


class Bound(msgspec.Struct, frozen=True):
    """The bond of an answer: llama.cpp's parameters, and a function that recognises it whole."""

    params: dict[str, Any] = {}
    recognise: Callable[[str], bool] | None = None
    notes: tuple[str, ...] = ()


def bound_of(request: Request, spells: bool) -> Bound:
    """Return what binds the answer. Raises InvalidSchemaError if llama.cpp cannot enforce it.

    `spells`: it may contain the text of a control token.
    """
    if request.json_schema is not None:
        schema, is_relaxed = compact_schema(request.json_schema, lax=request.lax_schema)
        params: dict[str, Any] = {"json_schema": msgspec.Raw(schema.encode())}
        if spells:
            params = {"grammar": freely_spelled(schema)}
        return Bound(params, is_json, (RELAXED_SCHEMA,) * is_relaxed)
    if request.grammar is not None:
        lark = lark_of(request.grammar)
        recognise = recogniser_of(lark)
        return Bound({"grammar": with_free_spelling(lark) if spells else lark}, recognise)
    return Bound()


def refusal_of_fields(request: Request, tools: "Tools | None") -> tuple[str, str] | None:
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
            "llama.cpp does not support min_tokens and stop_token_ids together with tools.",
        )
    if tools is not None and tools.form is not None and request.thinking_budget is not None:
        return (
            "unsupported_field",
            "llama.cpp supports a thinking budget only for models whose chat template shows tools,"
            " and without a required call or a schema.",
        )
    return None


class Tools(msgspec.Struct, frozen=True):
    """How a request's tools are shown to the model, and how it calls them.

    `shown` are the tools for the chat template, None if the template has no place for them.
    `form` is the form of the calls, None for the template's own. `spells`: the form contains the
    text of a control token.
    """

    shown: str | None
    form: CallForm | None
    notes: tuple[str, ...] = ()
    spells: bool = False
