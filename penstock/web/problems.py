"""Failures as HTTP responses, in the form of the API that the request's route belongs to.

Each API brings its routes together with its form of an error (`RouteGroup`). So the form is bound
to the route; only an address without a route is matched by its prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from penstock.errors import Problem
from penstock.web.access import access_of, discard_body

ErrorForm = Callable[[Problem], Response]
"""Makes the response that reports a problem, in one API's form."""


@dataclass(frozen=True)
class RouteGroup:
    """Routes whose errors have one form. `prefix` claims the addresses without a route below it."""

    routes: Sequence[Route]
    error_form: ErrorForm
    prefix: str


class ProblemResponse(JSONResponse):
    """A problem as a response. Its code goes into the log and the metrics."""

    def __init__(
        self, problem: Problem, body: dict[str, Any], status: int, media_type: str
    ) -> None:
        super().__init__(body, status, problem.headers | _retry_headers(problem), media_type)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the code, read a small unwanted body, and send the response."""
        access_of(scope).problem_code = self._code
        await discard_body(scope, receive)
        await super().__call__(scope, receive, send)


def _retry_headers(problem: Problem) -> dict[str, str]:
    """Return the headers that OpenAI's and Anthropic's clients obey before all others."""
    headers = {"X-Should-Retry": "true" if problem.retry_safe else "false"}
    if seconds := problem.headers.get("Retry-After"):
        headers["Retry-After-Ms"] = str(1000 * int(seconds))
    return headers


class ErrorResponses:
    """Reports problems in the form of the group that a request's route belongs to."""

    def __init__(self, groups: Sequence[RouteGroup]) -> None:
        # The longest prefix first.
        self._groups = sorted(groups, key=lambda group: -len(group.prefix))
        self.handlers = {Problem: self._problem, HTTPException: self._http, Exception: self._bug}
        """Exception handlers for Starlette."""

    def response(self, scope: Scope, problem: Problem) -> Response:
        """Return the response that reports `problem` to the client of this request."""
        return self._form_of(scope)(problem)

    async def _bug(self, http: Request, _: Exception) -> Response:
        return self.bug(http.scope)

    def _form_of(self, scope: Scope) -> ErrorForm:
        for group in self._groups:
            if any(route.matches(scope)[0] is not Match.NONE for route in group.routes):
                return group.error_form
        path = scope["path"] + "/"
        groups = (group for group in self._groups if path.startswith(group.prefix))
        return next(groups, self._groups[-1]).error_form  # the path of `OPTIONS *` has no slash

    async def _problem(self, http: Request, problem: Exception) -> Response:
        assert isinstance(problem, Problem)
        return self.response(http.scope, problem)

    async def _http(self, http: Request, error: Exception) -> Response:
        """Report what Starlette itself refuses."""
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            problem = Problem("no_such_route", "There is nothing at this address.")
        elif error.status_code == 405:
            allowed = ", ".join(_methods_of(http))
            detail = f"This address only accepts {allowed}."
            problem = Problem("method_not_allowed", detail, headers={"Allow": allowed})
        else:
            problem = Problem("bad_request", "The request cannot be read.")
        return self.response(http.scope, problem)

    def bug(self, scope: Scope) -> Response:
        """Return the response after an unexpected exception."""
        return self.response(
            scope,
            Problem("internal_error", "Something went wrong in the server; its log has details."),
        )


def _methods_of(request: Request) -> list[str]:
    """Return the methods that any route at this address accepts."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
