"""Compiles what binds an answer over vLLM, as vLLM's core will compile it.

In: tools, schemas, and structures of an answer. Out: tools and schemas in the form that can be
bound; structures are only compiled. All of it runs in a process with limits: `make` makes the
function for `process.bounded`. vLLM's core chooses the library, so a structure must be within the
limits with xgrammar and with llguidance; whether one of them refuses it is for vLLM to say. Not
known here: vLLM itself, which would take seconds and a gigabyte to load.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llguidance
import msgspec
import xgrammar

from penstock.engine.compiled import InvalidSchemaError, Vocabulary, generate_some
from penstock.engine.grammar import bound_tools, relaxed_schema

NUM_THREADS = 8  # as in vLLM's core


class BindTools(msgspec.Struct, frozen=True, tag=True):
    """Bind these tools. `max_integer` is the greatest integer that their grammar keeps."""

    tools: str
    max_integer: int


class BoundTools(msgspec.Struct, frozen=True, tag=True):
    """Tools with parameters that can be bound, and whether they were relaxed."""

    tools: str
    is_relaxed: bool


class RelaxSchema(msgspec.Struct, frozen=True, tag=True):
    """Leave out of a schema what cannot be bound."""

    schema: str


class RelaxedSchema(msgspec.Struct, frozen=True, tag=True):
    """A schema that can be bound."""

    schema: str


class Structure(msgspec.Struct, frozen=True, tag=True):
    """The structure of an answer: one field of vLLM's `StructuredOutputsParams`, and its value."""

    kind: str
    value: str | list[str]
    any_whitespace: bool = False


class Compiled(msgspec.Struct, frozen=True, tag=True):
    """The structure was compiled within the limits."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The answer cannot be bound as the job asks; `why` continues a sentence."""

    why: str


Job = BindTools | RelaxSchema | Structure
Outcome = BoundTools | RelaxedSchema | Compiled | Refused


def make(vocabulary: str) -> Callable[[bytes], bytes]:
    """Return the function that turns an encoded `Job` into an encoded `Outcome`.

    `vocabulary` is the path of a file with xgrammar's `TokenizerInfo` as JSON.
    """
    info = xgrammar.TokenizerInfo.deserialize_json(Path(vocabulary).read_text(encoding="utf-8"))
    special = {*info.special_token_ids, *info.stop_token_ids}
    tokens = [
        b"\xff" + text if number in special else text
        for number, text in enumerate(info.decoded_vocab)
    ]
    Vocabulary(tokens, info.stop_token_ids[0] if info.stop_token_ids else 0).use()
    decode = msgspec.msgpack.Decoder(Job).decode
    encode = msgspec.msgpack.Encoder().encode

    def bind_encoded(job: bytes) -> bytes:
        return encode(bind(decode(job), info))

    return bind_encoded


def bind(job: Job, info: Any) -> Outcome:
    """Do what the job asks."""
    if isinstance(job, RelaxSchema):
        return RelaxedSchema(json.dumps(relaxed_schema(json.loads(job.schema))))
    if isinstance(job, BindTools):
        try:
            bound = bound_tools(job.tools, is_gbnf=True, max_integer=job.max_integer)
        except InvalidSchemaError as error:
            return Refused(str(error))
        return BoundTools(*bound)
    compile_with_xgrammar(job, info)
    for grammar in _grammars_of(job):
        generate_some(grammar)
    return Compiled()


def compile_with_xgrammar(structure: Structure, info: Any) -> None:
    """Compile a structure with xgrammar and begin an answer, or do nothing if it refuses."""
    with contextlib.suppress(Exception):  # xgrammar raises many types; vLLM judges them
        compiled = _compiled(structure, xgrammar.GrammarCompiler(info, max_threads=NUM_THREADS))
        mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
        xgrammar.GrammarMatcher(compiled).fill_next_token_bitmask(mask)


def _compiled(structure: Structure, compiler: Any) -> Any:
    value = structure.value
    if structure.kind == "json":
        separators = None if structure.any_whitespace else (",", ":")
        return compiler.compile_json_schema(
            value, any_whitespace=structure.any_whitespace, separators=separators
        )
    if structure.kind == "regex":
        return compiler.compile_regex(value)
    if structure.kind == "structural_tag":
        return compiler.compile_structural_tag(value)
    if structure.kind == "choice":
        texts = (json.dumps(each, ensure_ascii=False) for each in value)
        return compiler.compile_grammar("root ::= " + " | ".join(texts))
    is_gbnf = "::=" in value
    return compiler.compile_grammar(value) if is_gbnf else compiler.compile_lark(value)


def _grammars_of(structure: Structure) -> Iterator[str]:
    """Yield the structure's grammars for llguidance, none if llguidance has no form for it."""
    value = structure.value
    if structure.kind == "json":
        yield llguidance.grammar_from("json_schema", _text(value))
    elif structure.kind == "structural_tag":
        for schema in _schemas_in(json.loads(_text(value))):
            yield llguidance.grammar_from("json_schema", json.dumps(schema))
    elif structure.kind == "regex":
        yield llguidance.grammar_from("regex", _text(value))
    elif structure.kind == "choice":
        yield llguidance.grammar_from("choice", json.dumps(value))
    else:
        with contextlib.suppress(ValueError):  # it is not valid GBNF
            yield llguidance.grammar_from("grammar", _text(value))


def _text(value: str | list[str]) -> str:
    assert isinstance(value, str)
    return value


def _schemas_in(tag: Any) -> Iterator[Any]:
    """Yield the JSON schemas in a structural tag."""
    if isinstance(tag, list):
        for each in tag:
            yield from _schemas_in(each)
    elif isinstance(tag, dict):
        for name, value in tag.items():
            if name in ("schema", "json_schema") and isinstance(value, dict):
                yield value
            else:
                yield from _schemas_in(value)
