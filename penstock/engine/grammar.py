"""JSON schemas → the grammar that llama.cpp is given, checked beforehand.

llama.cpp is built with llguidance, which understands schemas, and goes on without any where it
does not understand one: the answer would be free text, and nothing would say so. So the same
library is asked here, in the engine's process, before the request has a slot.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from llguidance import LLMatcher, LLTokenizer

MAX_REASON_CHARACTERS = 200
MAX_REPETITIONS = 1000
# Of one object. With twice as many, grammars take seconds, or are lost on the way.
MAX_PROPERTIES = 400
_RANGES = (
    ("minLength", "maxLength", MAX_REPETITIONS),
    ("minItems", "maxItems", MAX_REPETITIONS),
    ("minimum", "maximum", 2**53),
    ("exclusiveMinimum", "exclusiveMaximum", 2**53),
)
_QUOTED = re.compile(r"""(["'`]).*?\1""")
# What these say after a colon are words and numbers of the JSON schema language.
_WITHOUT_INPUT = frozenset({"Unimplemented keys", "Unsatisfiable schema"})
# Which tokens there are makes no difference to whether a schema is understood: bytes will do.
_BYTES = LLTokenizer("byte")


class InvalidSchemaError(Exception):
    """The schema cannot be kept to, and why."""


def compact_schema(schema: str) -> str:
    """The schema as llama.cpp is given it: without white space between the answer's tokens, in
    which a small model would lose itself. Raises InvalidSchemaError where llguidance does not
    understand it, or would need too much for it."""
    value = json.loads(schema)
    _check_properties(value)
    if isinstance(value, dict):
        value["x-guidance"] = {"whitespace_flexible": False}
    compact = json.dumps(value)
    matcher = LLMatcher(_BYTES, LLMatcher.grammar_from_json_schema(compact))
    if not matcher.is_error():
        matcher.compute_bitmask()  # some of what is wrong comes to light at the first token only
    if matcher.is_error():
        raise InvalidSchemaError(_reason(matcher.get_error()))
    return compact


def check_tools(tools: str) -> None:
    """Raises InvalidSchemaError where parameters of these tools (JSON, in OpenAI's form) are not
    understood, or would need too much: llama.cpp has grammars of its own for calls, which spell
    repetitions out, and it would stand still over some of them."""
    for tool in json.loads(tools):
        parameters = tool["function"]["parameters"]
        _check_repetitions(parameters)
        compact_schema(json.dumps(parameters))


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
    """Every object, wherever it stands: what is refused needlessly for that is rare."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects_in(each)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reason(error: str) -> str:
    """Why, without what the client sent: that stands in quotes there, or after a colon."""
    first_line = error.partition("\n")[0]
    head, _, tail = first_line.partition(": ")
    if head in _WITHOUT_INPUT:
        return f"{head}: {tail}"[:MAX_REASON_CHARACTERS]
    return _QUOTED.sub("...", first_line).partition(":")[0][:MAX_REASON_CHARACTERS]


def is_json(text: str) -> bool:
    """Whether the whole text is one JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
