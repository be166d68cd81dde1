"""Decides which tools llama.cpp may bind with grammars of its own (GBNF).

In: the parameters of functions, as JSON schemas. Out: whether GBNF binds them at a bounded cost.
llama.cpp makes such a grammar of the tools in a chat template's own form. It compares each token of
the vocabulary with each alternative that may come next, in its main loop, without a limit: 300
optional letters in a pattern stop every stream for more than 15 s. So the number of alternatives is
bounded here. Not known here: what is done with tools that are beyond the bound.
"""

from typing import Any

from penstock.engine.schemas import Object, is_number, objects_in

MAX_ALTERNATIVES = 256
"""How many alternatives may come next at one place of an answer."""
TOO_WIDE = MAX_ALTERNATIVES + 1
MAX_RULES = 65_536
"""How many rules llama.cpp may make for optional properties: the square of their number."""
# A range of numbers has alternatives for each number of digits.
NUM_OF_RANGE = 24
_BOUNDS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
_CHOICES = ("anyOf", "oneOf", "allOf")


def is_narrow(parameters: list[Any]) -> bool:
    """Return True if llama.cpp can bind calls of functions with these parameters at little cost."""
    if len(parameters) > MAX_ALTERNATIVES:
        return False
    num_rules = 0
    for schema in parameters:
        widths = _Widths(schema)
        for each in objects_in(schema):
            if widths.of(each) > MAX_ALTERNATIVES:
                return False
            num_rules += _num_optional(each) ** 2
    return num_rules <= MAX_RULES


class _Widths:
    """The number of alternatives with which a value of each schema in `whole` may begin.

    A value that may begin with itself has no bound: llama.cpp refuses such a grammar.
    """

    def __init__(self, whole: Any) -> None:
        self._whole = whole
        self._known: dict[int, int] = {}

    def of(self, schema: Any) -> int:
        """Return the number for a part of the whole schema, not counted far beyond the bound."""
        if not isinstance(schema, dict):
            return 1
        if id(schema) not in self._known:
            self._known[id(schema)] = TOO_WIDE  # if it is reached again while it is counted
            self._known[id(schema)] = min(self._count(schema), TOO_WIDE)
        return self._known[id(schema)]

    def _count(self, schema: Object) -> int:
        parts = [part for name in _CHOICES for part in _list(schema.get(name))]
        if isinstance(reference := schema.get("$ref"), str):
            parts.append(self._target(reference))
        width = sum(map(self.of, parts)) + len(_list(schema.get("enum")))
        width += _num_optional(schema)
        for pattern in (schema.get("pattern"), *_dict(schema.get("patternProperties"))):
            width += len(pattern) if isinstance(pattern, str) else 0
        if any(is_number(schema.get(name)) for name in _BOUNDS):
            width += NUM_OF_RANGE
        return max(1, width + len(_list(schema.get("type"))))

    def _target(self, reference: str) -> Any:
        target = self._whole
        for name in reference.removeprefix("#/").split("/"):
            target = _dict(target).get(name)
        return target


def _num_optional(schema: Object) -> int:
    required = _list(schema.get("required"))
    names = {each for each in required if isinstance(each, str)}
    return len(_dict(schema.get("properties")).keys() - names)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
