"""Checks what binds an answer before an upstream is asked: a schema, or a grammar.

In: a request's schema or grammar. Out: the forms in which upstreams take it, and how a whole answer
is recognised; or a refusal. llguidance compiles it, in a process with limits, as the engines in
Penstock do. So the same schemas are refused in the same words, an upstream gets nothing that costs
too much to compile, and an answer that an upstream did not bind is noticed. Not known here: which
upstream gets it.
"""

import asyncio
import json
from collections.abc import Callable

import msgspec

from penstock.engine.compiled import InvalidSchemaError, TooComplexError
from penstock.engine.gbnf import is_narrow
from penstock.engine.grammar import (
    NOT_COMPILED,
    RELAXED_SCHEMA,
    compact_schema,
    is_json,
    relaxed_schema,
    try_out_schema,
)
from penstock.engine.lark import lark_of, recogniser_of
from penstock.engine.process.bounded import BeyondBoundsError, BoundedFunction, JobLostError
from penstock.engine.process.forks import Limits
from penstock.request import Grammar, Request

COMPILE_LIMITS = Limits(cpu_s=1.0, memory_bytes=192 * 2**20, wall_s=10.0)

Recognise = Callable[[str], bool]


class Bond(msgspec.Struct, frozen=True):
    """The fields of a `Request` that bind its answer to a form."""

    json_schema: str | None
    lax_schema: bool
    grammar: Grammar | None


class Bound(msgspec.Struct, frozen=True, tag=True):
    """The checked form of an answer: a schema, a grammar, or none.

    `schema` is the schema for upstreams, and `compact` the same one for llama.cpp: without white
    space between the answer's tokens. `is_narrow`: llama.cpp can bind the answer to it at a bounded
    cost, whatever it makes of it. `lark` is the grammar in the form that recognises an answer.
    """

    schema: str | None = None
    compact: str | None = None
    is_narrow: bool = True
    grammar: Grammar | None = None
    lark: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def binds(self) -> bool:
        """Return True if the answer is bound."""
        return self.schema is not None or self.grammar is not None

    def recogniser(self) -> Recognise | None:
        """Return a function that recognises a whole answer. It may take a while to make."""
        if self.schema is not None:
            return is_json
        return None if self.lark is None else recogniser_of(self.lark)


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The answer cannot be bound; `why` continues a sentence."""

    why: str
    is_too_complex: bool = False


Outcome = Bound | Refused

_encode = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


def make() -> Callable[[bytes], bytes]:
    """Return the function that turns an encoded `Bond` into an encoded `Outcome`.

    Grammars are compiled for bytes: whether llguidance understands a grammar hardly depends on the
    model's tokens.
    """
    decode = msgspec.msgpack.Decoder(Bond).decode

    def bind_encoded(bond: bytes) -> bytes:
        return _encode(bind(decode(bond)))

    return bind_encoded


def bind(bond: Bond) -> Outcome:
    """Return what binds the answer, compiled and tried out."""
    try:
        return _with_schema(bond) if bond.grammar is None else _with_grammar(bond.grammar)
    except InvalidSchemaError as error:
        return Refused(str(error), isinstance(error, TooComplexError))


def _with_schema(bond: Bond) -> Bound:
    assert bond.json_schema is not None
    schema = bond.json_schema
    compact, is_relaxed = compact_schema(schema, lax=bond.lax_schema)
    try_out_schema(compact)
    if is_relaxed:
        schema = json.dumps(relaxed_schema(json.loads(schema)))
    notes = (RELAXED_SCHEMA,) * is_relaxed
    return Bound(schema, compact, is_narrow([json.loads(compact)]), notes=notes)


def _with_grammar(grammar: Grammar) -> Bound:
    if grammar.kind == "structural_tag":
        _check_tag(grammar.text)
        return Bound(grammar=grammar)
    return Bound(grammar=grammar, lark=lark_of(grammar))


def _check_tag(text: str) -> None:
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidSchemaError("a structural tag is a JSON object")


class UnboundError(Exception):
    """An answer cannot be bound as its request asks: an error's `code` and its sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Binder:
    """Checks what binds answers, in a process of its own that starts with the first bound one."""

    def __init__(self) -> None:
        self._function = BoundedFunction("penstock.engine.remote.binding:make", COMPILE_LIMITS)

    async def bind(self, request: Request) -> Bound:
        """Return what binds the answer to a request. Raises UnboundError."""
        if request.json_schema is None and request.grammar is None:
            return Bound()
        bond = Bond(request.json_schema, request.lax_schema, request.grammar)
        try:
            outcome: Outcome = _decode_outcome(await self._function(_encode(bond)))
        except BeyondBoundsError:
            outcome = Refused(str(TooComplexError()), is_too_complex=True)
        except JobLostError:
            raise UnboundError("engine_error", NOT_COMPILED) from None
        if isinstance(outcome, Bound):
            return outcome
        what = "schema" if request.grammar is None else "grammar"
        code = "schema_too_complex" if outcome.is_too_complex else f"invalid_{what}"
        raise UnboundError(code, f"No answer can be bound to this {what}: {outcome.why}.")

    def stop(self) -> None:
        """End the process."""
        self._function.stop()


async def recogniser_of_bound(bound: Bound) -> Recognise | None:
    """Return a function that recognises a whole answer, None if any text is whole."""
    return bound.recogniser() if bound.lark is None else await asyncio.to_thread(bound.recogniser)
