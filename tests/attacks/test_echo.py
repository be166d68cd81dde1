"""Errors about schemas repeat nothing of the schema (fault D17)."""

import json

import pytest

from penstock.engine.compiled import InvalidSchemaError
from penstock.engine.grammar import compact_schema

WORD = "oDdVaLuE"
SCHEMAS = [
    {"patternProperties": {f"{WORD}(": {}}},
    {"patternProperties": {f"^{WORD}": {"type": "string"}, f"{WORD}$": {"type": "integer"}}},
    {"patternProperties": {f"a: '{WORD}/(": {}}},
    {"type": "object", "required": [WORD], "additionalProperties": False},
    {"type": "object", "required": [f"it's '{WORD}"], "additionalProperties": False},
    {"type": "string", "pattern": f"{WORD}("},
    {"type": "string", "pattern": f"(?={WORD})x"},
    {"$ref": f"#/{WORD}"},
    {"$ref": f"http://{WORD}/"},
    {"$schema": WORD},
    {"type": WORD},
    {"type": [WORD]},
    {"type": "string", "format": WORD},
    {"required": WORD},
    {"minimum": f'"{WORD}'},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_an_error_about_a_schema_repeats_nothing_of_it(schema: object) -> None:
    with pytest.raises(InvalidSchemaError) as refused:
        compact_schema(json.dumps(schema))
    assert str(refused.value)
    assert WORD.lower() not in str(refused.value).lower()
