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

from penstock.api.tolerance import Notes, asks_nothing, is_neutral, notes_of
from penstock.errors import FieldError, InvalidFields, reason_from_pydantic

MAX_MESSAGES = 1024
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256
MAX_ERRORS = 16
# How often a body is read again after its values were mended.
MAX_ROUNDS = 4
MAX_TOKENS = 2**31 - 1

# False is not the default of these fields, so a request with it asks for something.
MEANINGFUL_FALSE = frozenset(
    {
        "add_generation_prompt",
        "cache_prompt",
        "include_reasoning",
        "parallel_tool_calls",
        "skip_special_tokens",
        "store",
        "think",
    }
)
# Programs that build bodies from text write numbers and truth values like this.
_DIGITS = re.compile(r"-?[0-9]{1,19}")
_DECIMALS = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?")
_TRUTH: dict[object, bool] = {0: False, 1: True, "false": False, "true": True}
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
    """A JSON object whose fields have exact types. `parse` decides about all others."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def left_out_as(path: str) -> WrapValidator:
    """Return the mark `LEFT_OUT` for a nested field, which notes name by its `path`."""

    def leave_out(value: object, validate: Callable[[object], Any], info: ValidationInfo) -> Any:
        notes = notes_of(info.context)
        if notes.strict:
            return validate(value)
        if not is_neutral(value):
            notes.ignore(path or info.field_name or "")
        return None

    return WrapValidator(leave_out)


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


LEFT_OUT = left_out_as("")
"""Marks a field that no answer depends on: any value is accepted, left out and noted."""
HINT = PlainValidator(_hint, json_schema_input_type=Any)
"""Marks a field that hints at an answer which this server cannot give: it is left out and noted."""
ZERO_IS_UNSET = BeforeValidator(_unset_zero)
"""Takes 0 for a field that was left out."""
WHOLE = BeforeValidator(_whole)
"""Takes 5.0 for 5, as other servers do."""


def _stops_of(value: object, info: ValidationInfo) -> object:
    """Return stop strings as a list. An empty string in a list stops nothing."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and "" in value and not notes_of(info.context).strict:
        return [each for each in value if each != ""]
    return value


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS, fail_fast=True),
    BeforeValidator(
        _stops_of,
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

    Unknown fields are left out and noted; with `notes.strict` they are errors. If a field, at any
    depth, does not take a value that asks for nothing, the field is left out. A number may be a
    string, a whole number a float, and a truth value 0, 1, "true" or "false".
    """
    first: list[ErrorDetails] = []
    for _ in range(MAX_ROUNDS):
        try:
            return _validated(model, body, notes)
        except ValidationError as error:
            errors = _errors_of(error)
        first = first or errors
        before = body
        for each in [] if notes.strict else errors[:MAX_ERRORS]:
            body = _mended(body, each["loc"], each["type"])
        if body is before:
            break
    raise invalid_fields(first)


def _mended(value: Any, location: tuple[int | str, ...], kind: str) -> Any:
    """Return a value without the error of this kind at this location within it.

    A value there that asks for nothing is left out, and a number or truth value in another form is
    converted. If neither helps, return the value itself; otherwise a copy, which shares what did
    not change. pydantic's locations also name the members of unions; these steps are skipped.
    """
    for number, part in enumerate(location):
        try:
            inner = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        mended = _mended(inner, location[number + 1 :], kind)
        if mended is inner and isinstance(value, dict) and asks_nothing(inner):
            return {name: each for name, each in value.items() if name != part}
        if mended is inner:
            return value
        copy = value.copy()
        copy[part] = mended
        return copy
    return _converted(value, kind)


def _converted(value: Any, kind: str) -> Any:
    """Return a number or a truth value in its own type, as an error of this kind asks for."""
    if kind == "bool_type" and isinstance(value, int | str) and value in _TRUTH:
        return _TRUTH[value]
    if kind == "int_type" and isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "float_type" and isinstance(value, str) and _DECIMALS.fullmatch(value):
        return float(value)
    return value


def _validated(model: type[Model], body: dict[str, Any], notes: Notes) -> Model:
    if notes.strict:
        return model.model_validate(body, context=notes, extra="forbid")
    parsed = model.model_validate(body, context=notes, extra="allow")
    _note_unknown(parsed, notes, "")
    return parsed


def _note_unknown(value: object, notes: Notes, path: str) -> None:
    """Note the unknown fields in a model and in the models that it contains."""
    if isinstance(value, BaseModel):
        before, fields = path and path + ".", value.__dict__
        for name, extra in (value.__pydantic_extra__ or {}).items():
            if not asks_nothing(extra) or (extra is False and name in MEANINGFUL_FALSE):
                notes.ignore(before + name)
        for name, shown in _models_in(type(value)):
            if (inner := fields[name]) is not None:
                _note_unknown(inner, notes, before + shown)
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
