"""OpenAI's error object: the form of an error on every route under `/v1`."""

import re
from typing import Any

from starlette.responses import Response

from penstock.errors import InvalidFields, Problem, kind_of
from penstock.events import Failure
from penstock.web.problems import ProblemResponse

# Our codes for which OpenAI has its own word that clients look for.
_CODES = {
    "prompt_too_long": "context_length_exceeded",
    "answer_too_long": "context_length_exceeded",
    "no_such_route": "unknown_url",
}
# The field that an engine's refusal is about.
_PARAMS = {
    "answer_too_long": "max_tokens",
    "invalid_schema": "response_format",
    "schema_lost": "response_format",
    "invalid_tools": "tools",
    "no_chat_template": "messages",
    "template_refused": "messages",
    "model_not_found": "model",
    "empty_prompt": "prompt",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_INDEX = re.compile(r"\.(\d+)")


def error_response(problem: Problem) -> Response:
    """Return the response that reports a problem. Its status is 400 if the native API's is 422."""
    status = 400 if problem.status == 422 else problem.status
    error = _error_object(problem.code, problem.detail, status, problem.retry_safe)
    body = {"error": {**error, "param": param_of(problem)}}
    return ProblemResponse(problem, body, status, "application/json")


def failure_object(failure: Failure) -> dict[str, Any]:
    """Return the error object of a stream that failed after it had begun."""
    status = kind_of(failure.code).status
    return _error_object(failure.code, failure.message, status, failure.retry_safe)


def _error_object(code: str, message: str, status: int, retry_safe: bool) -> dict[str, Any]:
    """Return the value of `error`.

    `type` says whether the client or the server is at fault. `retry_safe` is not OpenAI's: it says
    whether the client may send the request again.
    """
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "message": message,
        "type": _TYPES.get(status, kind),
        "param": None,
        "code": _CODES.get(code, code),
        "retry_safe": retry_safe,
    }


def param_of(problem: Problem) -> str | None:
    """Return the field that a problem is about, in OpenAI's spelling: `messages[0].role`."""
    if isinstance(problem, InvalidFields):
        return _INDEX.sub(r"[\1]", problem.errors[0].field)
    return _PARAMS.get(problem.code)
