"""JSON schemas, changed for the grammar that must bind an answer to them.

In: a schema as parsed JSON. Out: a changed copy. `closed` forbids properties that the schema does
not name, which a small model would invent without end. `relaxed` leaves out what no grammar binds.
Not known here: which engine enforces the schema.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keywords that do not change which values are valid.
_ANNOTATIONS = _words(
    "title description default examples example deprecated readOnly writeOnly nullable"
    " $comment $schema $id $defs definitions"
)
# The keywords of an object that only lists its properties.
_LISTED = _ANNOTATIONS | _words("type properties required minProperties maxProperties")
# What a value must satisfy in addition to the schema's other keywords.
_MERGED = _words("allOf not if then else dependentSchemas")
_CHOICES = _words("$ref anyOf oneOf")
# The keywords whose value is a schema, a list of schemas, or schemas by name.
_ONE = _words(
    "items additionalItems additionalProperties contains not if then else propertyNames"
    " unevaluatedItems unevaluatedProperties"
)
_LISTS = _words("items prefixItems allOf anyOf oneOf")
_NAMED = _words("properties patternProperties dependentSchemas $defs definitions")

# What a grammar can bind.
_BOUND = _words(
    "type enum const $ref allOf anyOf oneOf properties required additionalProperties"
    " patternProperties minProperties maxProperties items prefixItems additionalItems minItems"
    " maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum"
    " exclusiveMaximum multipleOf"
)
_FORMATS = _words("date-time date time duration email hostname ipv4 ipv6 uri uuid")
RANGES = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
)
INFINITY = float("inf")
BOUNDS: dict[str, float] = dict.fromkeys(
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), 2.0**53
)
"""The largest bounds: grammars silently bind an answer to another number beyond them."""
LOWER = ("minimum", "exclusiveMinimum")
LIMITS = BOUNDS | dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), 1000.0)
"""The largest numbers that GBNF can spell out."""

Object = dict[str, Any]


def closed(schema: Any) -> Any:
    """Return the schema with `additionalProperties: false` in objects that list their properties.

    An object stays open if closing it could make the schema impossible to satisfy: if its values
    must also satisfy other schemas, or if it requires more properties than it lists.
    """
    merging = [each for each in objects_in(schema) if _merges(each)]
    if any("$ref" in each for one in merging for each in objects_in(one)):
        return schema
    return _changed(schema, _closed_object, keep=_merges)


def _merges(schema: Object) -> bool:
    """Return True if a value must satisfy several parts of this schema together."""
    choices = _CHOICES & schema.keys()
    if _MERGED & schema.keys() or len(choices) > 1:
        return True
    return bool(choices) and not schema.keys() <= _ANNOTATIONS | choices | {"type"}


def _closed_object(schema: Object) -> Object:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return schema
    fits = all(isinstance(name, str) and name in properties for name in required)
    least = schema.get("minProperties", 0)
    if not fits or not is_number(least) or least > len(properties) or schema.keys() - _LISTED:
        return schema
    return {**schema, "additionalProperties": False}


def relaxed(schema: Any, *, binds_pattern: Callable[[str], bool], is_gbnf: bool = False) -> Any:
    """Return the schema without the keywords that the grammar does not bind.

    Every value that satisfies the schema satisfies the relaxed schema. `binds_pattern` tells
    whether the grammar binds a regular expression. GBNF, which llama.cpp makes of tools, spells
    out each repetition, and knows references only into the schema's definitions.
    """

    limits = LIMITS if is_gbnf else BOUNDS

    def change(schema: Object) -> Object:
        kept = {name: value for name, value in schema.items() if _is_bound(name, value)}
        one_of = kept.pop("oneOf", None)  # no grammar counts how many of its schemas hold
        if one_of is not None:
            kept.setdefault("anyOf", one_of)
        if not all(map(binds_pattern, kept.get("patternProperties", ()))):
            for name in ("patternProperties", "additionalProperties"):
                kept.pop(name, None)
        if isinstance(pattern := kept.get("pattern"), str) and not binds_pattern(pattern):
            del kept["pattern"]
        for least, most in RANGES:
            low, high = kept.get(least), kept.get(most)
            for name, value in ((least, low), (most, high)):
                is_empty = is_number(low) and is_number(high) and low > high
                is_beyond = is_number(value) and reach(name, value) > limits.get(name, INFINITY)
                if is_empty or is_beyond:
                    kept.pop(name, None)
        return _spell_out(kept) if is_gbnf else kept

    return _changed(schema, change)


def _is_bound(name: str, value: object) -> bool:
    if name == "format":
        return value in _FORMATS
    if name == "enum":
        return bool(value)
    return name in _BOUND or name in _ANNOTATIONS - {"$schema", "$id"}


def spelled_out(schema: Any) -> Any:
    """Return the schema in the form that GBNF has for it.

    GBNF has no schemas that are true or false (except for additional properties), and refers only
    to definitions.
    """
    return _changed(schema, _spell_out)


def _spell_out(schema: Object) -> Object:
    spelled = {name: _without_flags(name, value) for name, value in schema.items()}
    if not str(spelled.get("$ref", "#/$defs/")).startswith(("#/$defs/", "#/definitions/")):
        del spelled["$ref"]
    return spelled


def _without_flags(name: str, value: Any) -> Any:
    """Return the value of a keyword without true and false in place of schemas."""
    if name in _LISTS and isinstance(value, list):
        return [{} if isinstance(each, bool) else each for each in value]
    if name in _NAMED and isinstance(value, dict):
        return {key: {} if isinstance(each, bool) else each for key, each in value.items()}
    return {} if name == "items" and isinstance(value, bool) else value


def without_annotations(schema: Any) -> Any:
    """Return the schema without titles, descriptions, defaults and examples."""
    shown = _ANNOTATIONS - {"$defs", "definitions"}
    return _changed(
        schema, lambda each: {name: value for name, value in each.items() if name not in shown}
    )


def objects_in(schema: Any) -> Iterator[Object]:
    """Yield a schema and the schemas in it, as far as they are objects."""
    if isinstance(schema, dict):
        yield schema
        for name, value in schema.items():
            for each in _parts(name, value):
                yield from objects_in(each)


def _parts(name: str, value: Any) -> list[Any]:
    """Return the schemas in the value of a keyword."""
    if name in _LISTS and isinstance(value, list):
        return value
    if name in _NAMED and isinstance(value, dict):
        return list(value.values())
    return [value] if name in _ONE else []


def _changed(
    schema: Any, change: Callable[[Object], Object], keep: Callable[[Object], bool] | None = None
) -> Any:
    """Return the schema after `change` of each object in it, except where `keep` is True."""
    if not isinstance(schema, dict) or (keep is not None and keep(schema)):
        return schema
    parts: Object = {}
    for name, value in schema.items():
        if name in _LISTS and isinstance(value, list):
            parts[name] = [_changed(each, change, keep) for each in value]
        elif name in _NAMED and isinstance(value, dict):
            parts[name] = {key: _changed(each, change, keep) for key, each in value.items()}
        else:
            parts[name] = _changed(value, change, keep) if name in _ONE else value
    return change(parts)


def reach(name: str, value: float) -> float:
    """Return how far a bound lets numbers go. It is negative if the bound keeps them from 0."""
    return -value if name in LOWER else value


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
