"""A problem → RFC 9457 problem details, the native API's form of an error.

Under `/v1` every error has OpenAI's form instead (`openai_errors`).
"""

import re
from typing import Any

from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from penstock.api.openai.errors import PREFIX, error_response
from penstock.errors import FieldError, InvalidFields, Problem, reason_from_pydantic
from penstock.events import Failure, TerminalEvent
from penstock.web.access import ProblemResponse

# The names of our own fields, indices, and what might be a misspelt one of either.
_NAME = re.compile(r"\w{1,64}", re.ASCII)

# pydantic's error types → our codes; anything else is "invalid_value".
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


def problem_response(problem: Problem) -> Response:
    """The response that tells a client of a problem."""
    body: dict[str, Any] = {
        "type": f"urn:penstock:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "retry_safe": problem.retry_safe,
    }
    if isinstance(problem, InvalidFields):
        body["errors"] = [vars(error) for error in problem.errors]
    return ProblemResponse(problem, body, problem.status, "application/problem+json")


def problem_for(scope: Scope, problem: Problem) -> Response:
    """The same in the form of the API that the request is for."""
    if f"{scope['path']}/".startswith(PREFIX):
        return error_response(problem)
    return problem_response(problem)


def problem_of(end: TerminalEvent) -> Problem | None:
    """Why there is no whole answer that ends so, if there is none."""
    if isinstance(end, Failure):
        return Problem(end.code, end.message, retry_safe=end.retry_safe)
    if end.reason == "deadline" and not end.usage.completion_tokens:
        return Problem(
            "deadline_passed",
            "The time that this request had was up before it began. Send it again later, or allow"
            " it more.",
        )
    return None


def invalid_fields(errors: list[ErrorDetails]) -> InvalidFields:
    """pydantic's errors in our words. What the client sent is in none of them."""
    return InvalidFields([_field_error(error) for error in errors[:16]])


def _field_error(error: ErrorDetails) -> FieldError:
    # Where the input is an object with names of its own, the place is part of the input.
    place = [str(part) for part in error["loc"]]
    field = ".".join(part if _NAME.fullmatch(part) else "?" for part in place)
    kind = error["type"]
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    message = reason_from_pydantic(error["msg"])
    if kind == "extra_forbidden":
        message = "There is no such field."
    return FieldError(field or "body", code, f"{field}: {message}" if field else message)


def _methods_of(request: Request) -> list[str]:
    """What the address may be asked with, on whichever of its routes."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _problem(http: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_for(http.scope, problem)


async def _http_error(http: Request, error: Exception) -> Response:
    """What Starlette itself refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        problem: Problem = Problem("no_such_route", "There is nothing at this address.")
    elif error.status_code == 405:
        allowed = ", ".join(_methods_of(http))
        detail = f"This address answers to {allowed} only."
        problem = Problem("method_not_allowed", detail, headers={"Allow": allowed})
    else:
        problem = Problem("bad_request", "The request cannot be read.")
    return problem_for(http.scope, problem)


async def _bug(http: Request, _: Exception) -> Response:
    problem = Problem("internal_error", "Something went wrong in the server; its log says what.")
    return problem_for(http.scope, problem)


PROBLEM_HANDLERS = {Problem: _problem, HTTPException: _http_error, Exception: _bug}
"""For Starlette: answers to every failure on every route, in its API's form."""
