"""Anthropic's error object: the form of an error on its routes, and in its streams."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from penstock.errors import InvalidFields, Problem, kind_of
from penstock.events import Failure
from penstock.web.access import access_of
from penstock.web.problems import ProblemResponse

REQUEST_ID = "request-id"
OVERLOADED = 529
# These are not the client's fault: the same request is answered when there is room.
_OVERLOADED = ("queue_full", "deadline_too_soon")
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
# Claude Code finds an overflow by Anthropic's sentence with these two numbers.
_OVERFLOW = re.compile(
    r"length is (\d+) tokens.*? has (?:at least )?(\d+) (?:tokens|messages)", re.DOTALL
)


def error_response(problem: Problem) -> "AnthropicProblem":
    """Return the response that reports a problem."""
    return AnthropicProblem(problem)


class AnthropicProblem(ProblemResponse):
    """A problem as a response, which also names the request."""

    def __init__(self, problem: Problem) -> None:
        status = _status_of(problem.code, problem.status)
        self._object = _error_object(problem.code, problem.detail, status, problem.retry_safe)
        if isinstance(problem, InvalidFields):
            self._object["param"] = problem.errors[0].field
        body = {"type": "error", "error": self._object}
        super().__init__(problem, body, status, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response with the request's id."""
        request_id = access_of(scope).id
        body = {"type": "error", "error": self._object, "request_id": request_id}
        self.body = self.render(body)
        self.headers["content-length"] = str(len(self.body))
        self.headers[REQUEST_ID] = request_id
        await super().__call__(scope, receive, send)


def failure_object(failure: Failure) -> dict[str, Any]:
    """Return the error object of a stream that failed after it had begun."""
    status = _status_of(failure.code, kind_of(failure.code).status)
    return _error_object(failure.code, failure.message, status, failure.retry_safe)


def _status_of(code: str, status: int) -> int:
    if status == 503 or code in _OVERLOADED:
        return OVERLOADED
    return 400 if status == 422 else status


def _error_object(code: str, message: str, status: int, retry_safe: bool) -> dict[str, Any]:
    """Return the value of `error`. `code` and `retry_safe` are not Anthropic's."""
    if code == "prompt_too_long":
        message = f"{_overflow(message)} {message}"
    otherwise = "api_error" if status >= 500 else "invalid_request_error"
    kind = _TYPES.get(status, otherwise)
    return {"type": kind, "message": message, "code": code, "retry_safe": retry_safe}


def _overflow(message: str) -> str:
    """Return Anthropic's sentence about a prompt that is too long."""
    found = _OVERFLOW.search(message)
    if found is None:
        return "prompt is too long."
    return f"prompt is too long: {found[2]} tokens > {found[1]} maximum."
