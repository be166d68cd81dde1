"""Is it up (live), may it be sent requests (ready), and the notebook's plain `/health`."""

from collections.abc import Callable

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response


def health_routes(unready: Callable[[], str | None]) -> APIRouter:
    """The routes under `/health`. `unready` says why requests cannot be served now, or None."""
    router = APIRouter(prefix="/health")

    def answer(status: str, reason: str | None) -> Response:
        if reason is None:
            return JSONResponse({"status": status})
        return JSONResponse({"status": reason}, status_code=503, headers={"Retry-After": "1"})

    @router.api_route("", methods=["GET", "HEAD"], summary="Whether requests can be served")
    async def health() -> Response:
        return answer("healthy", unready())

    @router.api_route("/ready", methods=["GET", "HEAD"], summary="The same, for a load balancer")
    async def ready() -> Response:
        return answer("ready", unready())

    @router.api_route("/live", methods=["GET", "HEAD"], summary="Whether the process answers")
    async def live() -> Response:
        return answer("live", None)

    return router
