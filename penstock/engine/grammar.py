"""Checks JSON schemas and tools before an engine enforces them.

In: schemas and tools, as JSON. Out: the schema in the form for llama.cpp, or InvalidSchemaError.
llama.cpp uses llguidance to enforce a schema. If llguidance does not understand the schema,
llama.cpp generates free text without an error. So this module compiles the schema with the same
library before the request has a slot, in a process with limits (see `compiled`).
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from penstock.engine.compiled import InvalidSchemaError, compiled, try_out
from penstock.engine.patterns import is_bound_wrongly
from penstock.engine.schemas import (
    BOUNDS,
    LIMITS,
    RANGES,
    closed,
    is_number,
    objects_in,
    reach,
    relaxed,
    spelled_out,
    without_annotations,
)
from penstock.request import Request

RELAXED_TOOLS = "tools[].parameters (relaxed)"
RELAXED_SCHEMA = "response_format (relaxed)"
"""The notes of an engine that left something out of a schema."""
CANNOT_CONTINUE = (
    "The engine stopped. This answer with tools cannot continue from its middle. Send the request"
    " again."
)
NOT_COMPILED = "The schema, grammar or tools were not compiled. Send the request again."
MAX_REASON_CHARACTERS = 200
# Per object. With twice as many, llama.cpp needs seconds for the grammar or drops it.
MAX_PROPERTIES = 400
ANY_OBJECT = {"type": "object"}
# Beyond these integers llguidance and llama.cpp's grammars for tools silently take another number.
MAX_SCHEMA_INTEGER = 2**53
MAX_TOOLS_INTEGER = 2**64 - 1
# llguidance crashes at integers that become -2^63 as a float.
LEAST_TOOLS_INTEGER = -(2**63) + 2**10
# Begins a grammar whose texts the model may spell with any tokens. Otherwise llguidance forces a
# text that has no alternative with the tokens that a tokenizer makes of it. Some of them may be
# control tokens, which have no text in the answer.
FREELY = '%llguidance {"no_forcing": true}\n'
# From the first quotation mark of a kind to the last: the input may contain such marks, too.
_QUOTED = re.compile(r"""(["'`/]).*\1""")
# This error contains only words of the JSON schema language.
_WITHOUT_INPUT = "Unimplemented keys"
# After the colon this one contains also names, but in quotes.
_QUOTING = "Unsatisfiable schema"


def compact_schema(schema: str, *, lax: bool = False) -> tuple[str, bool]:
    """Return the schema for llama.cpp, and whether it was relaxed, which only `lax` allows.

    llama.cpp then allows no white space between the answer's tokens, which a small model would
    generate without end; nor properties that the schema does not name. Raises InvalidSchemaError if
    llguidance does not understand the schema or needs too many resources for it.
    """
    value = json.loads(schema)
    try:
        return _compact(value), False
    except InvalidSchemaError:
        if not lax:
            raise
    return _compact(relaxed_schema(value)), True


def relaxed_schema(schema: Any) -> Any:
    """Return the schema without what llguidance does not bind."""
    return relaxed(schema, binds_pattern=_binds_pattern)


def _compact(schema: Any, max_integer: int = MAX_SCHEMA_INTEGER) -> str:
    check_integers(schema, max_integer)
    check_bounds(schema)
    _check_properties(schema)
    _check_patterns(schema)
    schema = closed(schema)
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {"whitespace_flexible": False}}
    compact = json.dumps(schema)
    matcher = compiled(LLMatcher.grammar_from_json_schema(compact))
    if matcher.is_error():
        raise InvalidSchemaError(_reason(matcher.get_error()))
    return compact


def try_out_schema(schema: str) -> None:
    """Generate some tokens that follow a compact schema. Raises InvalidSchemaError."""
    try_out(LLMatcher.grammar_from_json_schema(schema))


def freely_spelled(schema: str) -> str:
    """Return a grammar for a compact schema whose texts the model may spell with any tokens."""
    return f"{FREELY}start: %json {schema}"


def has_pattern(schema: str) -> bool:
    """Return True if the schema has patterns, which may force any text."""
    return '"pattern"' in schema or '"patternProperties"' in schema


def check_integers(schema: object, greatest: int) -> None:
    """Raise InvalidSchemaError if the schema names an integer that a grammar would change.

    `greatest` is the greatest integer that the engine's grammar keeps in a `const` or an `enum`.
    """
    least = max(-greatest, LEAST_TOOLS_INTEGER)
    for each in objects_in(schema):
        for number in _numbers_in([each.get("const"), each.get("enum"), each.get("multipleOf")]):
            if isinstance(number, int) and not least <= number <= greatest:
                raise InvalidSchemaError(f"an integer is not from {least} to {greatest}")
            if number == -(2.0**63):  # a float: llguidance crashes
                raise InvalidSchemaError("a number is -2^63")
        for name, limit in BOUNDS.items():
            if is_number(bound := each.get(name)) and reach(name, bound) < -limit:
                raise InvalidSchemaError(f"it demands a number beyond {limit:.0f}")


def check_bounds(schema: object) -> None:
    """Raise InvalidSchemaError if a bound of the schema is too large for a grammar."""
    for each in objects_in(schema):
        for name, limit in BOUNDS.items():
            if is_number(bound := each.get(name)) and abs(bound) > limit:
                raise InvalidSchemaError(f"{name} is beyond {limit:.0f}")


def _numbers_in(value: object) -> Iterator[int | float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _numbers_in(each)
    elif is_number(value):
        yield value


def bound_tools(
    tools: str, *, is_gbnf: bool, lax: bool = False, max_integer: int = MAX_TOOLS_INTEGER
) -> tuple[str, bool]:
    """Return the tools with parameters that a grammar binds, and whether any were relaxed.

    `tools` is JSON in OpenAI's form; a function may be `strict`. With `is_gbnf` llama.cpp makes the
    grammar: it spells out every repetition, and some would block it. Otherwise llguidance binds the
    parameters, in the form of `compact_schema`. `max_integer` is the greatest integer that GBNF
    keeps in a `const` or an `enum`. Raises InvalidSchemaError if the parameters of a
    strict function cannot be bound, unless `lax`.
    """
    is_relaxed = False
    bound = json.loads(tools)
    for tool in bound:
        function = tool["function"]
        strict = bool(function.pop("strict", False)) and not lax
        # Never relaxed: the answer would have another number.
        check_integers(function["parameters"], max_integer if is_gbnf else MAX_SCHEMA_INTEGER)
        parameters = json.dumps(function["parameters"])
        if is_gbnf:
            text, was_relaxed = _spelled_parameters(parameters, strict, max_integer)
        else:
            text, was_relaxed = _compact_parameters(parameters, strict)
        function["parameters"] = json.loads(text)
        is_relaxed = is_relaxed or was_relaxed
    return json.dumps(bound, ensure_ascii=False), is_relaxed


def opened_tools(tools: str, bound: str | None = None) -> str:
    """Return the tools with any object as the parameters of functions that are not `strict`.

    The parameters of the others are those in `bound`, the same tools in a bound form.
    """
    opened = json.loads(bound or tools)
    for given, tool in zip(json.loads(tools), opened, strict=True):
        tool["function"].pop("strict", None)
        if not given["function"].get("strict", False):
            tool["function"]["parameters"] = ANY_OBJECT
    return json.dumps(opened, ensure_ascii=False)


def parameters_in(tools: str) -> list[Any]:
    """Return the parameters of each of the tools."""
    return [tool["function"]["parameters"] for tool in json.loads(tools)]


def bound_text(request: Request) -> str:
    """Return the text of whatever binds the answer: parameters of tools, a schema, a grammar."""
    parts: list[Any] = []
    if request.tools is not None:
        functions = [tool["function"] for tool in json.loads(request.tools)]
        parts += [(each["name"], without_annotations(each["parameters"])) for each in functions]
    if request.json_schema is not None:
        parts.append(without_annotations(json.loads(request.json_schema)))
    text = json.dumps(parts, ensure_ascii=False) if parts else ""
    return text if request.grammar is None else text + request.grammar.text


# Agents send the same tools with every request.
@lru_cache(maxsize=256)
def _compact_parameters(parameters: str, strict: bool) -> tuple[str, bool]:
    """Return a function's parameters for llguidance, and whether they were relaxed."""
    try:
        return compact_schema(parameters, lax=not strict)
    except InvalidSchemaError:
        if strict:
            raise
    return _compact(ANY_OBJECT), True


@lru_cache(maxsize=256)
def _spelled_parameters(parameters: str, strict: bool, max_integer: int) -> tuple[str, bool]:
    """Return a function's parameters for GBNF, and whether they were relaxed."""
    value = json.loads(parameters)
    try:
        _check_spelling(value)
        _compact(value, max_integer)
    except InvalidSchemaError:
        if strict:
            raise
    else:
        return parameters, False
    value = relaxed(value, binds_pattern=_gbnf_binds, is_gbnf=True)
    try:
        _compact(value, max_integer)
    except InvalidSchemaError:
        value = ANY_OBJECT
    return json.dumps(value), True


def _check_spelling(schema: Any) -> None:
    """Raise InvalidSchemaError if GBNF cannot spell out the schema."""
    for each in objects_in(schema):
        for name, limit in LIMITS.items():
            if is_number(value := each.get(name)) and abs(value) > limit:
                raise InvalidSchemaError(f"{name} is beyond {limit:.0f}")
        for least, most in RANGES:
            low, high = each.get(least), each.get(most)
            if is_number(low) and is_number(high) and low > high:
                raise InvalidSchemaError(f"{least} is above {most}")
        pattern = each.get("pattern")
        if isinstance(pattern, str) and "{" in pattern:
            raise InvalidSchemaError("a pattern counts repetitions")
    if spelled_out(schema) != schema:
        raise InvalidSchemaError("it uses true, false or a reference in place of a schema")


def _binds_pattern(pattern: str) -> bool:
    """Return whether llguidance binds this regular expression."""
    if is_bound_wrongly(pattern):
        return False
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "pattern": pattern}))
    return not compiled(grammar).is_error()


def _gbnf_binds(pattern: str) -> bool:
    return "{" not in pattern and _binds_pattern(pattern)


def _check_properties(schema: object) -> None:
    for each in objects_in(schema):
        properties = each.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise InvalidSchemaError(f"an object has more than {MAX_PROPERTIES} properties")


def _check_patterns(schema: object) -> None:
    for each in objects_in(schema):
        named = each.get("patternProperties")
        patterns = [each.get("pattern"), *(named if isinstance(named, dict) else ())]
        if any(isinstance(pattern, str) and is_bound_wrongly(pattern) for pattern in patterns):
            raise InvalidSchemaError("a pattern demands a character that JSON escapes")


def _reason(error: str) -> str:
    """Return llguidance's reason without the client's input (in quotes or after a colon)."""
    first_line = error.partition("\n")[0]
    head = first_line.partition(": ")[0]
    if head == _WITHOUT_INPUT:
        return first_line[:MAX_REASON_CHARACTERS]
    without = _QUOTED.sub("...", first_line)
    if head != _QUOTING:
        without = without.partition(":")[0].partition(", got ")[0]
    return without[:MAX_REASON_CHARACTERS]


def is_json(text: str) -> bool:
    """Return whether the whole text is one JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
