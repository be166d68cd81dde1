"""A problem → OpenAI's error object, the form of an error on every route under `/v1`."""

import re
from typing import Any

from starlette.responses import Response

from penstock.errors import InvalidFields, Problem, kind_of
from penstock.events import Failure
from penstock.web.problems import ProblemResponse

# Of our codes, those for which OpenAI has a word that its clients look for.
_CODES = {
    "prompt_too_long": "context_length_exceeded",
    "answer_too_long": "context_length_exceeded",
    "no_such_route": "unknown_url",
}
# Which field an engine's refusal is about.
_PARAMS = {
    "answer_too_long": "max_tokens",
    "invalid_schema": "response_format",
    "schema_lost": "response_format",
    "invalid_tools": "tools",
    "no_chat_template": "messages",
    "model_not_found": "model",
    "empty_prompt": "prompt",
}
_INDEX = re.compile(r"\.(\d+)")


def error_response(problem: Problem) -> Response:
    """The response that tells a client of a problem: 400 where the native API says 422."""
    status = 400 if problem.status == 422 else problem.status
    error = _error_object(problem.code, problem.detail, status, problem.retry_safe)
    body = {"error": {**error, "param": param_of(problem)}}
    return ProblemResponse(problem, body, status, "application/json")


def failure_object(failure: Failure) -> dict[str, Any]:
    """The same for a stream that failed on the way."""
    status = kind_of(failure.code).status
    return _error_object(failure.code, failure.message, status, failure.retry_safe)


def _error_object(code: str, message: str, status: int, retry_safe: bool) -> dict[str, Any]:
    """What stands in `error`. Its `type` says whose fault it is; `retry_safe`, which is not
    OpenAI's, whether to send the request again."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, kind
    )
    return {
        "message": message,
        "type": kind,
        "param": None,
        "code": _CODES.get(code, code),
        "retry_safe": retry_safe,
    }


def param_of(problem: Problem) -> str | None:
    """The field that a problem is about, in OpenAI's spelling: messages[0].role."""
    if isinstance(problem, InvalidFields):
        return _INDEX.sub(r"[\1]", problem.errors[0].field)
    return _PARAMS.get(problem.code)
