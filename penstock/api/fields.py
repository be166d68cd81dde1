"""Reads a request's body as a model, and the field types that every API uses.

In: a JSON object. Out: the model, or pydantic's errors in our own form. Unknown fields are left out
and noted (see `tolerance`), unless the server is strict.
"""

import functools
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WrapValidator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from penstock.api.tolerance import Notes, is_neutral, notes_of
from penstock.errors import FieldError, InvalidFields, reason_from_pydantic

MAX_MESSAGES = 1024
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_ERRORS = 16
MAX_TOKENS = 2**31 - 1

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
    "unsupported_field": "unsupported_field",
    "invalid_schema": "invalid_schema",
}


class Strict(BaseModel):
    """A JSON object whose fields have exact types. `parse` decides about other fields."""

    model_config = ConfigDict(extra="allow", strict=True)


def _left_out(value: object, validate: Callable[[object], Any], info: ValidationInfo) -> Any:
    notes = notes_of(info.context)
    if notes.strict:
        return validate(value)
    if not is_neutral(value):
        notes.ignore(info.field_name or "")
    return None


def _hint(value: object, info: ValidationInfo) -> None:
    if is_neutral(value):
        return
    refusal = PydanticCustomError("unsupported_field", "This server does not support this field.")
    notes_of(info.context).ignore_or(refusal, info.field_name or "")


def _unset_zero(value: object, info: ValidationInfo) -> object:
    return value if value or notes_of(info.context).strict else None


def _whole(value: object, info: ValidationInfo) -> object:
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole and not notes_of(info.context).strict else value  # type: ignore[call-overload] # a float


LEFT_OUT = WrapValidator(_left_out)
"""Marks a field that no answer depends on: any value is accepted, left out and noted."""
HINT = PlainValidator(_hint, json_schema_input_type=Any)
"""Marks a field that hints at an answer which this server cannot give: it is left out and noted."""
ZERO_IS_UNSET = BeforeValidator(_unset_zero)
"""Takes 0 for a field that was left out."""
WHOLE = BeforeValidator(_whole)
"""Takes 5.0 for 5, as other servers do."""

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS, fail_fast=True),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=StopString
        | Annotated[list[StopString], Field(max_length=MAX_STOPS)],
    ),
]


Model = TypeVar("Model", bound=Strict)


def misplaced(field: str, message: str, kind: str = "misplaced") -> PydanticCustomError:
    """Return an error about `field`, for rules that involve several fields."""
    return PydanticCustomError(kind, message, {"field": field})


def parse(model: type[Model], body: dict[str, Any], notes: Notes) -> Model:
    """Return the body as this model. Raises InvalidFields.

    Unknown fields are left out and noted; with `notes.strict` they are errors. A value that asks
    for nothing is the same as leaving the field out, if the field does not take it.
    """
    try:
        return _validated(model, body, notes)
    except ValidationError as error:
        given = {each["loc"][0] for each in _errors_of(error) if each["loc"]}
        neutral = {
            name
            for name, field in model.model_fields.items()
            if name in given and not field.is_required() and _asks_nothing(body.get(name))
        }
        if notes.strict or not neutral:
            raise invalid_fields(_errors_of(error)) from None
    try:
        return _validated(model, {k: v for k, v in body.items() if k not in neutral}, notes)
    except ValidationError as error:
        raise invalid_fields(_errors_of(error)) from None


def _asks_nothing(value: object) -> bool:
    return is_neutral(value) and (value != 0 or value is False)  # a number must be in its range


def _validated(model: type[Model], body: dict[str, Any], notes: Notes) -> Model:
    if notes.strict:
        return model.model_validate(body, context=notes, extra="forbid")
    parsed = model.model_validate(body, context=notes, extra="allow")
    _note_unknown(parsed, notes, "")
    return parsed


def _note_unknown(value: object, notes: Notes, path: str) -> None:
    """Note the unknown fields in a model and in the models that it contains."""
    if isinstance(value, BaseModel):
        before = path and path + "."
        for name, extra in (value.__pydantic_extra__ or {}).items():
            if not is_neutral(extra):
                notes.ignore(before + name)
        for name, shown in _models_in(type(value)):
            _note_unknown(getattr(value, name), notes, before + shown)
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        for each in value:
            _note_unknown(each, notes, path + "[]")


@functools.cache
def _models_in(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Return the fields that may contain models: the name of each, and the name in JSON."""
    return [
        (name, field.alias or name)
        for name, field in model.model_fields.items()
        if _may_be_model(field.annotation)
    ]


def _may_be_model(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_may_be_model(part) for part in get_args(annotation))


def _errors_of(error: ValidationError) -> list[ErrorDetails]:
    errors = error.errors(include_input=False, include_url=False)
    for each in errors:
        # A rule that involves several fields names the field that its error is about.
        if (field := each.get("ctx", {}).get("field")) is not None:
            each["loc"] = (*each["loc"], *field.split("."))
    return errors


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
    if kind == "union_tag_invalid":  # pydantic's own message repeats the value
        message = f"Give one of the types {error['ctx']['expected_tags']}."
    if kind == "extra_forbidden":
        message = "There is no such field."
    return FieldError(field or "body", code, f"{field}: {message}" if field else message)
