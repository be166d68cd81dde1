"""`GET /live/events`: what the server does, for the page `/live` and for programs.

It shows the streams of all owners, so with keys it needs an admin key (see `web.auth`). On a server
without keys the id of a stream is all that its owner has, so only programs on the same machine may
watch. Not known here: how a watcher is served (see `watching`).
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from penstock.api.live.board import Board
from penstock.api.live.watching import (
    MAX_INTERVAL_S,
    MIN_INTERVAL_S,
    USUAL_INTERVAL_S,
    WatcherResponse,
    Watchers,
)
from penstock.errors import Problem
from penstock.web.access import access_of
from penstock.web.auth import owner_of
from penstock.web.delivery import STREAM_HEADERS
from penstock.web.host import is_loopback
from penstock.web.keys import KeyRing

# A proxy on this machine adds these: its clients may be anywhere.
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})


def live_routes(
    board: Board, keys: KeyRing, stall_timeout: float, is_over: Callable[[], bool]
) -> list[Route]:
    """Return the route `/live/events`. `is_over` returns True once all streams have ended."""
    watchers = Watchers(board, stall_timeout, is_over)

    async def watch(http: Request) -> Response:
        """Stream what the server does: its streams, its queue, its figures and its troubles."""
        if keys.is_open and not _is_on_this_machine(http.scope):
            raise Problem(
                "admin_only",
                "Without keys, only programs on the server's machine may watch it. Start the"
                " server with an admin key (--admin-key) to watch it from elsewhere.",
            )
        interval = _interval(http.query_params.get("interval"))
        key_id = owner_of(http.scope).key_id

        def may_watch() -> bool:
            owner = keys.owner_with(key_id) if key_id else None
            return owner.is_admin if owner is not None else keys.is_open

        watcher = watchers.enter(access_of(http.scope).peer, interval, may_watch)
        return WatcherResponse(watcher, STREAM_HEADERS)

    route = Route("/live/events", watch, methods=["GET"], name="watch")
    route.methods = {"GET"}  # without HEAD, which Starlette adds
    return [route]


def _interval(given: str | None) -> float:
    """Return the seconds between two updates. Raises Problem."""
    try:
        interval = USUAL_INTERVAL_S if given is None else float(given)
    except ValueError:
        interval = 0.0
    if not MIN_INTERVAL_S <= interval <= MAX_INTERVAL_S:
        raise Problem(
            "out_of_range",
            f"The interval must be a number of seconds from {MIN_INTERVAL_S:g} to"
            f" {MAX_INTERVAL_S:g}.",
        )
    return interval


def _is_on_this_machine(scope: Scope) -> bool:
    """Return True if the client itself runs on this machine, not only a proxy."""
    client = scope.get("client")
    is_near = client is not None and is_loopback(client[0])
    return is_near and not any(name in _FORWARDED for name, _ in scope["headers"])
