"""Health checks: whether the process runs, and whether it can serve requests."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def health_routes(unready: Callable[[], str | None]) -> list[Route]:
    """Return the routes under `/health`.

    `unready` says why the server cannot serve requests now, or returns None.
    """

    def answer(status: str, reason: str | None) -> Response:
        if reason is None:
            return JSONResponse({"status": status})
        return JSONResponse({"status": reason}, status_code=503, headers={"Retry-After": "1"})

    async def health(_: Request) -> Response:
        """Report whether the server can serve requests."""
        return answer("healthy", unready())

    async def ready(_: Request) -> Response:
        """Report whether a load balancer may send requests here."""
        return answer("ready", unready())

    async def live(_: Request) -> Response:
        """Report that the process runs."""
        return answer("live", None)

    return [
        Route("/health", health, name="get_health"),
        Route("/health/ready", ready, name="get_readiness"),
        Route("/health/live", live, name="get_liveness"),
        # Other servers' names, which their clients ask for.
        Route("/v1/health", health, include_in_schema=False),
        Route("/ping", health, include_in_schema=False),
    ]
