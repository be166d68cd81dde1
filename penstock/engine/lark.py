"""Turns grammars that are no JSON schemas into Lark's form, which llguidance enforces.

In: a `Grammar`: a regular expression, a list of answers, GBNF or Lark. Out: the grammar in Lark's
form, checked, and a function that recognises its answers; or InvalidSchemaError. Not known here:
which engine enforces it.
"""

import json
from collections.abc import Callable

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark, is_lark_syntax

from penstock.engine.compiled import InvalidSchemaError, compiled_for_bytes, try_out
from penstock.engine.grammar import FREELY
from penstock.request import Grammar

HEADER = "%llguidance {}\n"


def lark_of(grammar: Grammar) -> str:
    """Return the grammar in Lark's form. Raises InvalidSchemaError if llguidance refuses it."""
    return checked(HEADER + _rules_of(grammar).removeprefix(HEADER))


def checked(lark: str) -> str:
    """Return a grammar in Lark's form. Raises InvalidSchemaError if llguidance refuses it."""
    try_out(LLMatcher.grammar_from_lark(lark))
    return lark


def is_lark(grammar: Grammar) -> bool:
    """Return True if llguidance takes the text of a grammar as Lark's form, and not as GBNF."""
    return grammar.kind == "grammar" and is_lark_syntax(grammar.text)


def with_free_spelling(lark: str) -> str:
    """Return a grammar from `lark_of` whose texts the model may spell with any tokens."""
    return FREELY + lark.removeprefix(HEADER)


def has_regex(grammar: Grammar) -> bool:
    """Return True if the grammar may have regular expressions."""
    return grammar.kind == "regex" or (grammar.kind == "grammar" and "/" in grammar.text)


def recogniser_of(lark: str) -> Callable[[str], bool]:
    """Compile a grammar. Return a function that tells whether a text is a whole answer of it."""
    compiled = compiled_for_bytes(LLMatcher.grammar_from_lark(lark))

    def recognise(text: str) -> bool:
        matcher = compiled.deep_copy()
        data = list(text.encode())
        return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()

    return recognise


def _rules_of(grammar: Grammar) -> str:
    if grammar.kind == "choice":
        return "start: " + " | ".join(json.dumps(each) for each in json.loads(grammar.text))
    if grammar.kind == "regex":
        return f"start: /{regex_to_lark(grammar.text)}/"
    if grammar.kind == "structural_tag":
        raise InvalidSchemaError("llguidance has no structural tags")
    try:
        return any_to_lark(grammar.text)
    except Exception as error:  # the converter raises bare Exceptions too
        raise InvalidSchemaError("it is not valid GBNF") from error
