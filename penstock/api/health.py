"""Health checks: whether the process runs, and whether it can serve requests.

If several processes share the address, every check speaks for all of them: they can serve requests
if one can.

Upstreams (`--upstream`) do not make a server unready: while none is there, requests wait in its
queue, so that upstreams can scale to zero. How many are up is told beside the status.
"""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.siblings import Siblings


def health_routes(
    unready: Callable[[], str | None],
    upstreams: Callable[[], Mapping[str, tuple[int, int]]],
    siblings: Siblings | None = None,
) -> list[Route]:
    """Return the routes under `/health`.

    `unready` says why this process cannot serve requests now, or returns None. `upstreams` counts
    this process's upstreams by model.
    """

    def answer(status: str, reason: str | None) -> Response:
        content: dict[str, Any] = {"status": status}
        if counts := upstreams():
            content["upstreams"] = {
                model: {"up": num_up, "all": num_all} for model, (num_up, num_all) in counts.items()
            }
        if siblings is not None:
            states = siblings.states()
            content["processes"] = {str(number): state for number, state in states.items()}
            reason = None if "ready" in states.values() else reason
        if reason is None:
            return JSONResponse(content)
        headers = {"Retry-After": "1"}
        return JSONResponse({**content, "status": reason}, status_code=503, headers=headers)

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
