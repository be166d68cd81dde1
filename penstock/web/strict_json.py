"""Parses a request's body as strict JSON.

In: bytes. Out: a dict of JSON values, checked beyond RFC 8259: UTF-8 without a byte order mark,
finite numbers, no repeated names, no lone surrogates, bounded depth and bounded numbers of values.
The meaning of the fields is not known here. No problem ever contains a piece of the input.

Work and memory are linear in the body. The numbers of values, objects, arrays and names are
checked before or while they are made, because a Python value takes many times its JSON's bytes.
"""

import json
import math
import re
from typing import Any

from penstock.errors import Problem

MAX_DEPTH = 64
MAX_NUMBER_DIGITS = 1000
MAX_NAMES = 1024
"""The most names in one object."""
MAX_CONTAINERS = 65_536
"""The most objects and arrays in a body."""
MAX_VALUES = 524_288
"""The most commas between values in a body: a list of token ids as long as most contexts."""

# A string, also without its end, or anything else. It never goes back over what it has read.
_PART = re.compile(rb'[^"]++|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises Problem."""
    if not has_few_values(body):
        raise Problem(
            "too_many_values",
            f"The body has more than {MAX_VALUES} values, or more than {MAX_CONTAINERS}"
            " objects and lists.",
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Problem("invalid_utf8", "The body is not UTF-8.") from None
    try:
        value = (_decoder if len(text) > MAX_NUMBER_DIGITS else _short_decoder).decode(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise Problem("invalid_json", "The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise Problem("not_an_object", "The body must be a JSON object, like {...}.")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value)
    if "\\u" in text:
        _check_unicode(value)
    return value


def has_few_values(body: bytes) -> bool:
    """Return True if this JSON has no more values, objects and lists than a body may have."""
    if len(body) <= MAX_CONTAINERS or _are_few(*_counts_of(body)):
        return True  # nearly every body, whatever its strings contain
    num_commas = num_containers = 0
    for part in _PART.finditer(body):
        piece = part[0]
        if not piece.startswith(b'"'):
            commas, containers = _counts_of(piece)
            num_commas += commas
            num_containers += containers
            if not _are_few(num_commas, num_containers):
                return False
    return True


def _counts_of(piece: bytes) -> tuple[int, int]:
    return piece.count(b","), piece.count(b"[") + piece.count(b"{")


def _are_few(num_commas: int, num_containers: int) -> bool:
    return num_commas < MAX_VALUES and num_containers <= MAX_CONTAINERS


def _too_deep() -> Problem:
    return Problem("too_deep", f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for container in level:
            children = container.values() if isinstance(container, dict) else container
            inner += [child for child in children if isinstance(child, dict | list)]  # type: ignore[attr-defined] # only dicts and lists get here
        if not inner:
            return
        level = inner
    raise _too_deep()


def _check_unicode(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Problem("invalid_unicode", "A string contains half of a surrogate pair.") from None


def _bounded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise Problem("too_many_names", f"An object has more than {MAX_NAMES} names.")
    return _unique(pairs)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise Problem("duplicate_name", "An object has the same name twice.")
    return result


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Problem("invalid_json", "A number is too large for a 64-bit float.")
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise Problem("number_too_long", f"A number has more than {MAX_NUMBER_DIGITS} digits.")
    return int(digits)


def _refuse_constant(_: str) -> None:
    raise Problem("invalid_json", "NaN and Infinity are not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_bounded,
    parse_float=_finite,
    parse_int=_bounded_int,
    parse_constant=_refuse_constant,
)
# A short text cannot have too many names, or numbers with too many digits.
_short_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant
)
