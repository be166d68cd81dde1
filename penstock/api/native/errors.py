"""The native API's form of an error: problem details (RFC 9457)."""

from typing import Any

from starlette.responses import Response

from penstock.errors import InvalidFields, Problem
from penstock.web.problems import ProblemResponse


def problem_details(problem: Problem) -> Response:
    """Return the response that reports a problem."""
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
