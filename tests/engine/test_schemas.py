"""JSON schemas, closed and relaxed for a grammar."""

import json
from typing import Any

import jsonschema_rs
import pytest

from penstock.engine.compiled import InvalidSchemaError
from penstock.engine.grammar import bound_tools, compact_schema
from penstock.engine.schemas import closed

JOKE = {
    "type": "object",
    "properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}},
    "required": ["setup", "punchline"],
}
CLOSED = {"additionalProperties": False}


def test_an_object_that_lists_its_properties_is_closed_at_any_depth() -> None:
    nested = {"type": "array", "items": {"type": "object", "properties": {"joke": JOKE}}}
    assert closed(JOKE) == {**JOKE, **CLOSED}
    inner = {"type": "object", "properties": {"joke": {**JOKE, **CLOSED}}, **CLOSED}
    assert closed(nested) == {"type": "array", "items": inner}


def test_the_definitions_of_pydantic_s_models_are_closed() -> None:
    schema = {
        "$defs": {"Joke": {**JOKE, "title": "Joke"}},
        "type": "object",
        "title": "Answer",
        "properties": {
            "best": {"$ref": "#/$defs/Joke", "description": "the best one"},
            "other": {"anyOf": [{"$ref": "#/$defs/Joke"}, {"type": "null"}], "default": None},
        },
    }
    shut = closed(schema)
    assert shut["additionalProperties"] is False
    assert shut["$defs"]["Joke"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**JOKE, "additionalProperties": True},
        {**JOKE, "additionalProperties": {"type": "string"}},
        {**JOKE, "patternProperties": {"^x-": {}}},
        {**JOKE, "required": ["setup", "punchline", "source"]},
        {**JOKE, "minProperties": 3},
        {**JOKE, "enum": [{"setup": "a", "punchline": "b", "source": "c"}]},
        {"allOf": [JOKE, {"properties": {"source": {}}, "required": ["source"]}]},
        {**JOKE, "allOf": [{"properties": {"source": {}}, "required": ["source"]}]},
        {"properties": {"source": {}}, "anyOf": [JOKE, {"required": ["source"]}]},
        {**JOKE, "oneOf": [{"required": ["source"]}]},
        {**JOKE, "if": {"required": ["source"]}, "then": {}},
        {"$defs": {"a": JOKE}, "properties": {"source": {}}, "$ref": "#/$defs/a"},
        {
            "$defs": {"a": JOKE},
            "properties": {"b": {"$ref": "#/$defs/a", "required": ["source"]}},
        },
    ],
    ids=str,
)
def test_an_object_stays_open_if_closing_it_could_contradict(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def bound(schema: Any, *, is_gbnf: bool = False, strict: bool = False) -> tuple[Any, bool]:
    """Return the parameter `a` of a function as it is bound, and whether it was relaxed."""
    parameters = {"type": "object", "properties": {"a": schema}}
    function = {"name": "f", "parameters": parameters, "strict": strict}
    tools, is_relaxed = bound_tools(
        json.dumps([{"type": "function", "function": function}]), is_gbnf=is_gbnf
    )
    (tool,) = json.loads(tools)
    assert "strict" not in tool["function"]
    return tool["function"]["parameters"].get("properties", {}).get("a"), is_relaxed


def is_small(value: object) -> bool:
    return not isinstance(value, int | float) or abs(value) <= 2**53


UNBOUND: list[tuple[dict[str, Any], Any]] = [
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"ab": 1}),
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["a", "b"]),
    ({"type": "string", "not": {"const": "b"}}, "a"),
    ({"type": "object", "if": {"required": ["b"]}, "then": {"required": ["c"]}}, {"b": 1, "c": 2}),
    ({"type": "string", "format": "html"}, "a"),
    ({"type": "array", "contains": {"const": 1}}, [2, 1]),
    ({"type": "object", "dependentRequired": {"b": ["c"]}}, {}),
    ({"type": "object", "unevaluatedProperties": False}, {}),
    ({"type": "string", "pattern": "^(?!b).*$"}, "a"),
    ({"type": "string", "pattern": "^(a)\\1$"}, "aa"),
    ({"oneOf": [{"type": "string"}, {"const": "a"}]}, "b"),
]


@pytest.mark.parametrize(("schema", "value"), UNBOUND, ids=str)
def test_what_a_grammar_does_not_bind_is_left_out_unless_it_is_strict(
    schema: dict[str, Any], value: Any
) -> None:
    for is_gbnf in (False, True):
        changed, is_relaxed = bound(schema, is_gbnf=is_gbnf)
        assert is_relaxed
        assert changed is not None, "only this part is relaxed"
        assert jsonschema_rs.is_valid(changed, value)
        assert jsonschema_rs.is_valid(schema, value)
        with pytest.raises(InvalidSchemaError):
            bound(schema, is_gbnf=is_gbnf, strict=True)
    with pytest.raises(InvalidSchemaError):
        compact_schema(json.dumps(schema))
    assert compact_schema(json.dumps(schema), lax=True)[1]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 2000},
        {"type": "array", "items": {}, "minItems": 1001},
        {"type": "string", "pattern": "^a{3}$"},
        {"type": "array", "items": False},
        {"type": "array", "prefixItems": [{"type": "string"}], "items": False},
        {"type": "array", "items": {"$ref": "#"}},
    ],
    ids=str,
)
def test_what_only_gbnf_cannot_spell_out_is_left_out_only_for_gbnf(schema: dict[str, Any]) -> None:
    assert not bound(schema)[1]
    assert bound(schema, is_gbnf=True)[1]


def test_integers_that_a_grammar_would_change_are_never_relaxed() -> None:
    beyond = {"type": "object", "properties": {"id": {"const": 2**53 + 1}}}
    assert not bound(beyond, is_gbnf=True)[1]  # GBNF keeps up to 64 bits
    demanded = ({"minimum": 2**53 + 1}, {"exclusiveMaximum": -(2**53) - 1})
    for schema in (beyond, *({"type": "integer", **each} for each in demanded)):
        for strict in (False, True):
            with pytest.raises(InvalidSchemaError):
                bound(schema, strict=strict)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        {"type": "integer", "minimum": -(2**63), "maximum": 5},
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2**63},
        {"type": "number", "minimum": 0, "maximum": 1.7976931348623157e308},
    ],
    ids=str,
)
def test_a_bound_that_allows_integers_which_a_grammar_would_change_is_left_out(
    schema: dict[str, Any],
) -> None:
    """Programs that describe integers of 64 bits send such bounds."""
    small = {name: value for name, value in schema.items() if is_small(value)}
    for is_gbnf in (False, True):
        assert bound(schema, is_gbnf=is_gbnf) == (small, True)
        with pytest.raises(InvalidSchemaError):
            bound(schema, is_gbnf=is_gbnf, strict=True)
    assert compact_schema(json.dumps(schema), lax=True)[1]


@pytest.mark.parametrize("broken", [{"type": 5}, {"$ref": "#/$defs/none"}, {"required": "a"}])
def test_parameters_that_make_no_sense_become_any_object_unless_they_are_strict(
    broken: dict[str, Any],
) -> None:
    for is_gbnf in (False, True):
        assert bound(broken, is_gbnf=is_gbnf) == (None, True)
        with pytest.raises(InvalidSchemaError):
            bound(broken, is_gbnf=is_gbnf, strict=True)


def test_a_schema_that_can_be_bound_is_not_relaxed() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **JOKE,
        "definitions": {"a": {"type": ["string", "null"], "format": "date-time"}},
    }
    compact, is_relaxed = compact_schema(json.dumps(schema), lax=True)
    assert not is_relaxed
    assert json.loads(compact)["additionalProperties"] is False
