"""Checks JSON schemas and tools before an engine enforces them.

In: schemas and tools, as JSON. Out: the schema in the form for llama.cpp, or InvalidSchemaError.
llama.cpp uses llguidance to enforce a schema. If llguidance does not understand the schema,
llama.cpp generates free text without an error. So this module checks the schema with the same
library, in the engine's process, before the request has a slot.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from llguidance import LLMatcher, LLTokenizer

MAX_REASON_CHARACTERS = 200
MAX_REPETITIONS = 1000
# Per object. With twice as many, llama.cpp needs seconds for the grammar or drops it.
MAX_PROPERTIES = 400
_RANGES = (
    ("minLength", "maxLength", MAX_REPETITIONS),
    ("minItems", "maxItems", MAX_REPETITIONS),
    ("minimum", "maximum", 2**53),
    ("exclusiveMinimum", "exclusiveMaximum", 2**53),
)
# Beyond these integers llguidance and llama.cpp's grammars for tools silently take another number.
MAX_SCHEMA_INTEGER = 2**53
MAX_TOOLS_INTEGER = 2**64 - 1
# llguidance crashes at integers that become -2^63 as a float.
LEAST_TOOLS_INTEGER = -(2**63) + 2**10
_BOUNDS = tuple(name for least, most, limit in _RANGES if limit == 2**53 for name in (least, most))
# Begins a grammar whose texts the model may spell with any tokens. Otherwise llguidance forces a
# text that has no alternative with the tokens that a tokenizer makes of it. Some of them may be
# control tokens, which have no text in the answer.
FREELY = '%llguidance {"no_forcing": true}\n'
_QUOTED = re.compile(r"""(["'`]).*?\1""")
# After the colon these errors contain only words and numbers of the JSON schema language.
_WITHOUT_INPUT = frozenset({"Unimplemented keys", "Unsatisfiable schema"})
# Whether llguidance understands a schema does not depend on the tokens, so bytes will do.
_BYTES = LLTokenizer("byte")


class InvalidSchemaError(Exception):
    """The schema cannot be enforced; the message says why."""


def compact_schema(schema: str) -> str:
    """Return the schema for llama.cpp, which allows no white space between the answer's tokens.

    A small model would generate white space without end. Raises InvalidSchemaError if llguidance
    does not understand the schema or needs too many resources for it.
    """
    value = json.loads(schema)
    check_integers(value, MAX_SCHEMA_INTEGER)
    return _compact(value)


def _compact(value: Any) -> str:
    _check_properties(value)
    if isinstance(value, dict):
        value["x-guidance"] = {"whitespace_flexible": False}
    compact = json.dumps(value)
    matcher = LLMatcher(_BYTES, LLMatcher.grammar_from_json_schema(compact))
    if not matcher.is_error():
        matcher.compute_bitmask()  # some errors appear only at the first token
    if matcher.is_error():
        raise InvalidSchemaError(_reason(matcher.get_error()))
    return compact


def freely_spelled(schema: str) -> str:
    """Return a grammar for a compact schema whose texts the model may spell with any tokens."""
    return f"{FREELY}start: %json {schema}"


def has_pattern(schema: str) -> bool:
    """Return True if the schema has patterns, which may force any text."""
    return '"pattern"' in schema or '"patternProperties"' in schema


def check_tools(tools: str, *, max_integer: int = MAX_TOOLS_INTEGER) -> None:
    """Check the parameters of these tools (JSON, in OpenAI's form).

    `max_integer` is the greatest integer that the engine's grammar keeps in a `const` or an `enum`.
    Raises InvalidSchemaError if they are not understood or need too many resources: llama.cpp's
    own grammars for tool calls spell out every repetition, and some would block it.
    """
    for tool in json.loads(tools):
        parameters = tool["function"]["parameters"]
        _check_repetitions(parameters)
        check_integers(parameters, max_integer)
        _compact(parameters)


def check_integers(schema: object, greatest: int) -> None:
    """Raise InvalidSchemaError if the schema names an integer that a grammar would change.

    `greatest` is the greatest integer that the engine's grammar keeps in a `const` or an `enum`.
    """
    least = max(-greatest, LEAST_TOOLS_INTEGER)
    for each in _objects_in(schema):
        for number in _numbers_in([each.get("const"), each.get("enum"), each.get("multipleOf")]):
            if isinstance(number, int) and not least <= number <= greatest:
                raise InvalidSchemaError(f"an integer is not from {least} to {greatest}")
            if number == -(2.0**63):  # a float: llguidance crashes
                raise InvalidSchemaError("a number is -2^63")
        bounds = filter(_is_number, map(each.get, _BOUNDS))
        if any(abs(number) > MAX_SCHEMA_INTEGER for number in bounds):
            raise InvalidSchemaError(f"a bound is beyond {MAX_SCHEMA_INTEGER}")


def _numbers_in(value: object) -> Iterator[int | float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _numbers_in(each)
    elif _is_number(value):
        yield value


def _check_properties(schema: object) -> None:
    for each in _objects_in(schema):
        properties = each.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise InvalidSchemaError(f"an object has more than {MAX_PROPERTIES} properties")


def _check_repetitions(schema: object) -> None:
    for each in _objects_in(schema):
        for least, most, limit in _RANGES:
            low, high = each.get(least), each.get(most)
            for name, value in ((least, low), (most, high)):
                if _is_number(value) and abs(value) > limit:
                    raise InvalidSchemaError(f"{name} is beyond {limit}")
            if _is_number(low) and _is_number(high) and low > high:
                raise InvalidSchemaError(f"{least} is above {most}")
        pattern = each.get("pattern")
        if isinstance(pattern, str) and "{" in pattern:
            raise InvalidSchemaError("a pattern counts repetitions")


def _objects_in(value: object) -> Iterator[dict[str, Any]]:
    """Yield every JSON object, also one that is no schema, such as an object in an `enum`."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects_in(each)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reason(error: str) -> str:
    """Return llguidance's reason without the client's input (in quotes or after a colon)."""
    first_line = error.partition("\n")[0]
    head, _, tail = first_line.partition(": ")
    if head in _WITHOUT_INPUT:
        return f"{head}: {tail}"[:MAX_REASON_CHARACTERS]
    return _QUOTED.sub("...", first_line).partition(":")[0][:MAX_REASON_CHARACTERS]


def is_json(text: str) -> bool:
    """Return whether the whole text is one JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
