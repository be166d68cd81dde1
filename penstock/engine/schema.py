"""JSON schemas → the grammar that llama.cpp is given, checked beforehand.

llama.cpp is built with llguidance, which understands schemas, and goes on without any where it
does not understand one: the answer would be free text, and nothing would say so. So the same
library is asked here, in the engine's process, before the request has a slot.
"""

import json
import re

from llguidance import LLMatcher, LLTokenizer

MAX_REASON_CHARACTERS = 200
_QUOTED = re.compile(r"""(["'`]).*?\1""")
# Which tokens there are makes no difference to whether a schema is understood: bytes will do.
_BYTES = LLTokenizer("byte")


class InvalidSchemaError(Exception):
    """The schema cannot be kept to, and why."""


def compact_schema(schema: str) -> str:
    """The schema as llama.cpp is given it: without white space between the answer's tokens, in
    which a small model would lose itself. Raises InvalidSchemaError where llguidance does not
    understand it, or would need too much for it."""
    value = json.loads(schema)
    if isinstance(value, dict):
        value["x-guidance"] = {"whitespace_flexible": False}
    compact = json.dumps(value)
    matcher = LLMatcher(_BYTES, LLMatcher.grammar_from_json_schema(compact))
    if not matcher.is_error():
        matcher.compute_bitmask()  # some of what is wrong comes to light at the first token only
    if matcher.is_error():
        first_line = matcher.get_error().partition("\n")[0].rstrip(":")
        # What the client sent stands in quotes there, and in no message of ours.
        reason = _QUOTED.sub("...", first_line)[:MAX_REASON_CHARACTERS]
        raise InvalidSchemaError(reason)
    return compact


def is_json(text: str) -> bool:
    """Whether the whole text is one JSON value."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
