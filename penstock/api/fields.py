"""Field types that every API uses, and pydantic's errors in our own form."""

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails

from penstock.errors import FieldError, InvalidFields, reason_from_pydantic

MAX_MESSAGES = 1024
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_ERRORS = 16

# The names of our own fields, indices, and perhaps misspelt forms of either.
_NAME = re.compile(r"\w{1,64}", re.ASCII)

# pydantic's error types and our codes; every other type is "invalid_value".
_CODES = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "int_parsing_size": "out_of_range",
    "too_long": "too_many_items",
    "too_short": "too_few_items",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "literal_error": "invalid_value",
    "empty_prompt": "empty_prompt",
    "invalid_schema": "invalid_schema",
}


class Strict(BaseModel):
    """A JSON object that only takes its own fields, with their exact types."""

    model_config = ConfigDict(extra="forbid", strict=True)


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=StopString
        | Annotated[list[StopString], Field(max_length=MAX_STOPS)],
    ),
]


def invalid_fields(errors: list[ErrorDetails]) -> InvalidFields:
    """Return pydantic's errors as a problem, without anything that the client sent."""
    return InvalidFields([_field_error(error) for error in errors[:MAX_ERRORS]])


def _field_error(error: ErrorDetails) -> FieldError:
    # If the input is an object with names of its own, the location is part of the input.
    location = [str(part) for part in error["loc"]]
    field = ".".join(part if _NAME.fullmatch(part) else "?" for part in location)
    kind = error["type"]
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    message = reason_from_pydantic(error["msg"])
    if kind == "extra_forbidden":
        message = "There is no such field."
    return FieldError(field or "body", code, f"{field}: {message}" if field else message)
