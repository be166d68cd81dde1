"""The field types of sampling that several APIs share: biases, token ids and penalties."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from penstock.api.fields import WHOLE
from penstock.api.tolerance import notes_of
from penstock.engine.protocol import ModelInfo
from penstock.errors import FieldError, InvalidFields

MAX_LOGIT_BIASES = 300
MAX_STOP_TOKENS = 64
MAX_TOKEN_ID = 2**31 - 1


def _biases_of(value: object, info: ValidationInfo) -> dict[int, float]:
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "Give an object that maps token ids to biases.")
    if len(value) > MAX_LOGIT_BIASES:
        raise PydanticCustomError("too_long", f"Give at most {MAX_LOGIT_BIASES} tokens.")
    biases = {}
    for name, bias in value.items():
        if not (name.isascii() and name.isdigit() and len(name) < 11):
            raise PydanticCustomError("value_error", "Use token ids (numbers) as names.")
        if isinstance(bias, str) and not notes_of(info.context).strict:
            bias = _number_in(bias)
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise PydanticCustomError("float_type", "Give each token's bias as a number.")
        if not -100 <= bias <= 100:
            raise PydanticCustomError("less_than_equal", "Give biases from -100 to 100.")
        biases[int(name)] = float(bias)
    return biases


def _number_in(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


LogitBias = Annotated[
    dict[int, float], PlainValidator(_biases_of, json_schema_input_type=dict[str, float])
]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), WHOLE]],
    Field(max_length=MAX_STOP_TOKENS, fail_fast=True),
]
AdditivePenalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=100)]


def check_token_ids(field: str, token_ids: Iterable[int], info: ModelInfo) -> None:
    """Raise InvalidFields for `field` unless the model has all of these tokens."""
    bound = info.vocabulary_size or MAX_TOKEN_ID
    if not all(token_id < bound for token_id in token_ids):
        message = f"{field}: The model has no such token. Use token ids below {bound}."
        raise InvalidFields([FieldError(field, "invalid_value", message)])
