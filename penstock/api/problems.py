"""A problem → RFC 9457 problem details, the native API's form of an error."""

import re
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from penstock.api.exchange import exchange_of
from penstock.errors import BadRequest, FieldError, InvalidFields, NotFound, Problem

# The names of our own fields, indices, and what might be a misspelt one of either.
_NAME = re.compile(r"\w{1,64}", re.ASCII)

# pydantic's error types → our codes; anything else is "invalid_value".
_CODES = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "int_parsing_size": "out_of_range",
    "too_long": "too_many_items",
    "too_short": "too_few_items",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "literal_error": "invalid_value",
}


class ProblemResponse(JSONResponse):
    """A problem as an answer. Its code goes into the log and the metrics as well."""

    media_type = "application/problem+json"

    def __init__(self, problem: Problem, body: dict[str, Any]) -> None:
        super().__init__(body, status_code=problem.status, headers=problem.headers)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).problem_code = self._code
        await super().__call__(scope, receive, send)


def problem_response(problem: Problem) -> Response:
    """The response that tells a client of a problem."""
    body: dict[str, Any] = {
        "type": f"urn:penstock:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
    }
    if isinstance(problem, InvalidFields):
        body["errors"] = [vars(error) for error in problem.errors]
    return ProblemResponse(problem, body)


def invalid_fields(errors: list[ErrorDetails]) -> InvalidFields:
    """pydantic's errors in our words. What the client sent is in none of them."""
    return InvalidFields([_field_error(error) for error in errors[:16]])


def _field_error(error: ErrorDetails) -> FieldError:
    # Where the input is an object with names of its own, the place is part of the input.
    place = [str(part) for part in error["loc"]]
    field = ".".join(part if _NAME.fullmatch(part) else "?" for part in place)
    kind = error["type"]
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    message = error["msg"].removeprefix("Value error, ")
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


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every failure on every route in one form."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, problem: Exception) -> Response:
        assert isinstance(problem, Problem)
        return problem_response(problem)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return problem_response(NotFound("no_such_route", "There is nothing at this address."))
        if error.status_code == 405:
            allowed = ", ".join(_methods_of(request))
            detail = f"This address answers to {allowed} only."
            problem = BadRequest(
                "method_not_allowed", detail, status=405, headers={"Allow": allowed}
            )
            return problem_response(problem)
        return problem_response(
            BadRequest("bad_request", "The request cannot be read.", status=error.status_code)
        )

    @app.exception_handler(Exception)
    async def _bug(_: Request, __: Exception) -> Response:
        return problem_response(
            Problem("internal_error", "Something went wrong in the server; its log says what.")
        )
