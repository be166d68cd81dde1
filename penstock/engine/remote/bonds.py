"""Decides which upstreams can bind an answer or report log probabilities, and how to ask them.

In: a request, what binds its answer, and an upstream's profile. Out: fields of the body, or a
sentence that refuses the request. Not known here: how a schema is checked (see `binding`).
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from penstock.engine.lark import is_lark
from penstock.engine.protocol import Feature
from penstock.engine.remote.binding import Bound
from penstock.engine.remote.profile import NAMES, Kind, Level, Profile
from penstock.request import Grammar, Request

Fields = dict[str, Any]

ANY_OBJECT = {"type": "object"}
MAX_TOP_OF_COMPLETIONS = 5
_ESCAPES = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_BINDS_CHATS_ONLY: tuple[Kind, ...] = ("openai", "ollama")
_SENTENCES: dict[Feature, str] = {
    "json_schema": "{} binds no answer to a schema here.",
    "tools_with_schema": "{} takes no schema together with tools. Leave out one of them.",
    "grammar": "{} binds no answer to a grammar here.",
    "structural_tag": "{} knows no structural tags.",
    "top_logprobs": "{} reports no log probabilities.",
    "prompt_logprobs": "{} reports no log probabilities of a prompt.",
}


def is_demanding(request: Request) -> bool:
    """Return True if not every upstream of a model may be able to answer the request."""
    return (
        request.top_logprobs is not None
        or request.prompt_logprobs is not None
        or request.json_schema is not None
        or request.grammar is not None
        or request.tools is not None
    )


def refusal_of(profile: Profile, level: Level, request: Request, bound: Bound) -> str | None:
    """Return the sentence that refuses the request at this upstream, None if it can answer."""
    name = NAMES[profile.kind]
    name = name[0].upper() + name[1:]
    supports = profile.supports(level)
    for feature in _features_of(request):
        if feature not in supports:
            return _SENTENCES[feature].format(name)
    kind, is_chat = profile.kind, request.messages is not None
    if bound.binds and not is_chat and kind in _BINDS_CHATS_ONLY:
        return f"{name} binds only the answers to chats. Send messages."
    top = request.top_logprobs or 0
    if kind == "openai" and not is_chat and top > MAX_TOP_OF_COMPLETIONS:
        return f"{name} reports {MAX_TOP_OF_COMPLETIONS} likely tokens of a completion at most."
    if kind == "ollama" and request.tool_call_required:
        return f"{name} cannot force a call of a tool. Leave out tool_choice."
    if kind == "llamacpp":
        return _refusal_of_llama(profile, request, bound)
    if kind == "sglang" and request.grammar is not None and is_lark(request.grammar):
        return f"{name} knows no grammars in Lark's form. Give it in EBNF."
    return None


def _refusal_of_llama(profile: Profile, request: Request, bound: Bound) -> str | None:
    if request.tool_call_required and "tools" not in profile.chat_template:
        return "The model's chat template has no place for tools: no call can be forced."
    if bound.binds and request.ignore_eos:
        return (
            "llama.cpp cannot lengthen an answer that a schema or a grammar binds. Leave out"
            " ignore_eos."
        )
    if not bound.is_narrow:
        return "llama.cpp's server would need too long for this schema: it has too many choices."
    if request.grammar is not None and gbnf_of(request.grammar) is None:
        return (
            "llama.cpp's server knows no regular expressions and no grammars in Lark's form. Give a"
            " grammar in GBNF."
        )
    return None


def _features_of(request: Request) -> list[Feature]:
    features: list[Feature] = []
    if request.json_schema is not None:
        features.append("json_schema" if request.tools is None else "tools_with_schema")
    if request.grammar is not None:
        is_tag = request.grammar.kind == "structural_tag"
        features.append("structural_tag" if is_tag else "grammar")
    if request.top_logprobs is not None:
        features.append("top_logprobs")
    if request.prompt_logprobs is not None:
        features.append("prompt_logprobs")
    return features


def bond_fields(kind: Kind, request: Request, bound: Bound) -> Fields:
    """Return the fields that bind an answer, on every route of an upstream of this kind."""
    if bound.schema is not None:
        return _SCHEMA_FIELDS.get(kind, _response_format)(request, bound)
    if bound.grammar is not None:
        return _GRAMMAR_FIELDS[kind](bound.grammar)
    return {}


def logprobs_fields(request: Request, *, is_chat: bool) -> Fields:
    """Return the fields that ask for log probabilities, on OpenAI's routes.

    At least one likely token is asked for: with none, llama.cpp's server reports nothing.
    """
    if request.top_logprobs is None:
        return {}
    num_top = max(1, request.top_logprobs)
    return {"logprobs": True, "top_logprobs": num_top} if is_chat else {"logprobs": num_top}


def gbnf_of(grammar: Grammar) -> str | None:
    """Return the grammar in GBNF, None if it has another form."""
    if grammar.kind == "choice":
        return "root ::= " + " | ".join(map(_quoted, json.loads(grammar.text)))
    # A llama.cpp's server that was built without llguidance dies of a grammar in Lark's form.
    if grammar.kind == "grammar" and not is_lark(grammar):
        return grammar.text
    return None


def _quoted(text: str) -> str:
    """Return a text as GBNF writes it."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\u{ord(character):04x}" if character < " " else character


def _response_format(request: Request, bound: Bound) -> Fields:
    """Return OpenAI's field for a schema. One without a condition is OpenAI's older JSON mode."""
    assert bound.schema is not None
    if json.loads(bound.schema) == ANY_OBJECT:
        return {"response_format": {"type": "json_object"}}
    schema = {
        "name": "answer",
        "schema": msgspec.Raw(bound.schema.encode()),
        "strict": not request.lax_schema,
    }
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _llama_schema(_: Request, bound: Bound) -> Fields:
    assert bound.compact is not None
    return {"json_schema": msgspec.Raw(bound.compact.encode())}


def _vllm_schema(_: Request, bound: Bound) -> Fields:
    # A small model would put white space between the tokens without end.
    assert bound.schema is not None
    schema = msgspec.Raw(bound.schema.encode())
    return {"structured_outputs": {"json": schema, "disable_any_whitespace": True}}


def _structured_outputs(grammar: Grammar) -> Fields:
    value = json.loads(grammar.text) if grammar.kind == "choice" else grammar.text
    return {"structured_outputs": {grammar.kind: value}}


def _llama_grammar(grammar: Grammar) -> Fields:
    return {"grammar": gbnf_of(grammar)}


def _sglang_grammar(grammar: Grammar) -> Fields:
    if grammar.kind == "regex":
        return {"regex": grammar.text}
    if grammar.kind == "structural_tag":
        return {"response_format": {"type": "structural_tag", **json.loads(grammar.text)}}
    return {"ebnf": gbnf_of(grammar)}


_SCHEMA_FIELDS: dict[Kind, Callable[[Request, Bound], Fields]] = {
    "llamacpp": _llama_schema,
    "vllm": _vllm_schema,
}
_GRAMMAR_FIELDS: dict[Kind, Callable[[Grammar], Fields]] = {
    "llamacpp": _llama_grammar,
    "vllm": _structured_outputs,
    "penstock": _structured_outputs,
    "sglang": _sglang_grammar,
}
