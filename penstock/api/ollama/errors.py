"""Ollama's form of an error: one sentence in `error`, on its routes and in its streams."""

from typing import Any

from starlette.responses import Response

from penstock.errors import Problem
from penstock.events import Failure
from penstock.web.problems import ProblemResponse


def error_response(problem: Problem) -> Response:
    """Return the response that reports a problem. Its status is 400 if the native API's is 422."""
    status = 400 if problem.status == 422 else problem.status
    body = error_object(problem.code, problem.detail, retry_safe=problem.retry_safe)
    return ProblemResponse(problem, body, status, "application/json")


def failure_object(failure: Failure) -> dict[str, Any]:
    """Return the last line of a stream that failed after it had begun."""
    return error_object(failure.code, failure.message, retry_safe=failure.retry_safe)


def error_object(code: str, message: str, *, retry_safe: bool) -> dict[str, Any]:
    """Return the object that reports an error. `code` and `retry_safe` are not Ollama's."""
    return {"error": message, "code": code, "retry_safe": retry_safe}
