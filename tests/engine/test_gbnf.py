"""Which tools llama.cpp may bind with grammars of its own."""

from typing import Any

import pytest

from penstock.engine.gbnf import MAX_ALTERNATIVES, is_narrow
from tests.support.mcp import LISTS

TEXT = {"type": "string"}
DOUBLED = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(20)}


def in_object(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


@pytest.mark.parametrize("name", LISTS)
def test_the_tools_of_real_servers_are_narrow(name: str) -> None:
    assert is_narrow([tool["function"]["parameters"] for tool in LISTS[name]])


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["a"] * (MAX_ALTERNATIVES + 1)},
        {"type": "string", "pattern": "a?" * MAX_ALTERNATIVES},
        {"patternProperties": {"a?" * MAX_ALTERNATIVES: TEXT}},
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 99}] * 20},
        {"properties": {f"a{n}": TEXT for n in range(MAX_ALTERNATIVES + 1)}},
        {"$ref": "#/$defs/d0", "$defs": {**DOUBLED, "d20": TEXT}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, TEXT]}}},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_parameters_with_many_alternatives_are_not_narrow(schema: dict[str, Any]) -> None:
    definitions = {"$defs": schema.pop("$defs", {})}
    assert not is_narrow([{**in_object(schema), **definitions}])


def test_a_tree_is_narrow() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}, "value": TEXT}}
    assert is_narrow([{**in_object({"$ref": "#/$defs/tree"}), "$defs": {"tree": tree}}])


def test_many_functions_with_many_optional_properties_are_not_narrow() -> None:
    function = {"type": "object", "properties": {f"a{n}": TEXT for n in range(200)}}
    assert is_narrow([function])
    assert not is_narrow([function, function])
