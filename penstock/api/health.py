"""Is it up (live), may it be sent requests (ready), and the notebook's plain `/health`."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def health_routes(unready: Callable[[], str | None]) -> list[Route]:
    """The routes under `/health`. `unready` says why requests cannot be served now, or None."""

    def answer(status: str, reason: str | None) -> Response:
        if reason is None:
            return JSONResponse({"status": status})
        return JSONResponse({"status": reason}, status_code=503, headers={"Retry-After": "1"})

    async def health(_: Request) -> Response:
        """Whether requests can be served."""
        return answer("healthy", unready())

    async def ready(_: Request) -> Response:
        """The same, for a load balancer."""
        return answer("ready", unready())

    async def live(_: Request) -> Response:
        """Whether the process answers."""
        return answer("live", None)

    return [
        Route("/health", health),
        Route("/health/ready", ready),
        Route("/health/live", live),
    ]
