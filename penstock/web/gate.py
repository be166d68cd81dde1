"""Everything between the HTTP server and a route, composed once at start.

A request passes the checks of its host and its key. Then it goes to its route: an address without
parameters is found by one look into a table, any other by Starlette's router. An address may end
with a slash that its route does not have. Failures become
responses in the form of the route's API.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.errors import Problem
from penstock.web.auth import KeyCheck
from penstock.web.host import HostCheck
from penstock.web.http1.head import MAX_LINES, REFUSAL, fault_of_coding, too_large
from penstock.web.problems import ErrorResponses

Endpoint = Callable[[Request], Awaitable[Response]]


class Gate:
    """An ASGI application that serves `routes` to admitted requests.

    `make_cors` wraps the application that answers requests of web pages, after the host was
    checked and before the key is. With `always_cors` it also sees requests that name no origin.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        host_check: HostCheck,
        key_check: KeyCheck,
        errors: ErrorResponses,
        make_cors: Callable[[ASGIApp], ASGIApp],
        *,
        always_cors: bool,
    ) -> None:
        self._host_check = host_check
        self._key_check = key_check
        self._errors = errors
        self._cors = make_cors(self._serve)
        self._always_cors = always_cors
        self._routes = Starlette(routes=routes, exception_handlers=errors.handlers)
        # It would redirect to whatever the Host header says.
        self._routes.router.redirect_slashes = False
        self._exact: dict[tuple[str, str], tuple[Route, Endpoint]] = {
            (method, route.path): (route, route.endpoint)
            for route in reversed(routes)  # the first of several wins
            if not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        problem = scope.get(REFUSAL) or _fault_of_head(scope) or self._host_check.problem(scope)
        if problem is not None:
            await self._errors.response(scope, problem)(scope, receive, send)
        elif self._always_cors or any(name == b"origin" for name, _ in scope["headers"]):
            await self._cors(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._key_check.problem(scope)
        if problem is not None:
            await self._errors.response(scope, problem)(scope, receive, send)
            return
        found = self._exact.get((scope["method"], scope["path"]))
        if found is None:
            path = scope["path"].removesuffix("/")
            if path not in (scope["path"], "/") and (scope["method"], path) in self._exact:
                scope["path"] = path
                await self._serve(scope, receive, send)  # the key is checked again, for this path
                return
            await self._routes(scope, receive, send)
            return
        scope["route"], endpoint = found
        try:
            response = await endpoint(Request(scope, receive, send))
        except Problem as refusal:
            response = self._errors.response(scope, refusal)
        except Exception:
            await self._errors.bug(scope)(scope, receive, send)
            raise  # the access record logs it
        await response(scope, receive, send)


def _fault_of_head(scope: Scope) -> Problem | None:
    """Return the problem of a head that Granian lets through, over TLS or HTTP/2."""
    headers = scope["headers"]
    return too_large() if len(headers) > MAX_LINES else fault_of_coding(headers)
