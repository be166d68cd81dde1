"""The tools that a model may call, as every API hands them to the engine.

In: a function's name, description and schema. Out: the fields of `Request`. Not known here: any
API's own form of a tool.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError, from_json

MAX_TOOLS = 1024
MAX_SCHEMA_CHARACTERS = 65_536

ToolName = Annotated[str, Field(pattern=r'^[^\x00-\x1f"\\\x7f]{1,256}$')]


def bounded_schema(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the schema. Raises PydanticCustomError if it is too long."""
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
        raise schema_too_long()
    return schema


def schema_too_long() -> PydanticCustomError:
    """Return the error for a schema with too many characters."""
    return PydanticCustomError(
        "invalid_schema", f"Give a schema of at most {MAX_SCHEMA_CHARACTERS} characters."
    )


Schema = Annotated[dict[str, JsonValue], AfterValidator(bounded_schema)]


def shown_function(
    name: str, description: str | None, parameters: Mapping[str, Any] | None, *, strict: bool
) -> dict[str, Any]:
    """Return a function as chat templates expect it, with every field that they may use."""
    function: dict[str, Any] = {
        "name": name,
        "description": description or "",
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    if strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def shown_tools(
    functions: Sequence[dict[str, Any]], *, required: bool, parallel: bool
) -> dict[str, Any]:
    """Return the fields of `Request` for the functions that the model may call.

    `required`: the model must call one. `parallel`: it may call several.
    """
    return {
        "tools": json.dumps(functions, ensure_ascii=False),
        "tool_call_required": required,
        "parallel_calls": parallel,
    }


def arguments_of(text: str) -> dict[str, Any]:
    """Return a call's arguments; if the answer ended within them, as much as is complete."""
    try:
        given = from_json(text, allow_partial=True)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
