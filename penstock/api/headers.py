"""Request headers: how to read them, and Penstock's own, which other APIs have for fields."""

import re

from starlette.requests import Request as HttpRequest

from penstock.errors import FieldError, InvalidFields, Problem
from penstock.request import MAX_TIMEOUT_S

RESUMABLE = "x-penstock-resumable"
TIMEOUT = "x-penstock-timeout"


def values_of(http: HttpRequest, name: bytes) -> list[str]:
    """Return the values of a header, named in lower case. This costs less than Starlette's way."""
    return [value.decode("latin-1") for each, value in http.scope["headers"] if each == name]


def asks_to_resume(http: HttpRequest, *, streamed: bool) -> bool:
    """Return True if the client asks for a stream that it can resume. Raises Problem."""
    given = http.headers.getlist(RESUMABLE)
    if not given or given == ["false"]:
        return False
    if given != ["true"]:
        raise Problem("invalid_value", "X-Penstock-Resumable is true or false.")
    if not streamed:
        raise invalid("stream", "Only a streamed answer can be resumable.")
    return True


def timeout_of(http: HttpRequest) -> float | None:
    """Return the request's timeout in seconds, None if the client set none. Raises Problem."""
    given = http.headers.getlist(TIMEOUT)
    if not given:
        return None
    digits = given[0]
    is_number = len(given) == 1 and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", digits, re.ASCII)
    if not is_number or not 0 < float(digits) <= MAX_TIMEOUT_S:
        raise Problem(
            "invalid_value", f"X-Penstock-Timeout is a number of seconds up to {MAX_TIMEOUT_S}."
        )
    return float(digits)


def invalid(field: str, message: str) -> InvalidFields:
    """Return the refusal of a field."""
    return InvalidFields([FieldError(field, "invalid_value", f"{field}: {message}")])
