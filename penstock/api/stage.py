"""The stage: a demonstration can break what the server survives, and show that it does.

In: a button of the page. Out: a real cut connection, a killed or a stopped engine process. The
routes exist only on a server for a demonstration, which has no keys and listens on this machine
alone. There, every program of the user can do the same with `kill`. A web page of another origin
cannot, so each request must come from a page of this server.
"""

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.errors import Problem, StartError
from penstock.settings import Settings
from penstock.web.host import is_loopback
from penstock.web.liveness import Liveness

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


@runtime_checkable
class EngineProcess(Protocol):
    """An engine that has a process of its own on this machine."""

    @property
    def pid(self) -> int | None:
        """The id of the process, which leads its process group; None if there is no process."""


class Stage:
    """Breaks things for a demonstration.

    The engine is restarted when it has been silent for `engine_timeout` seconds.
    """

    def __init__(self, engine: EngineProcess, liveness: Liveness, engine_timeout: float) -> None:
        self._engine = engine
        self._liveness = liveness
        self.engine_timeout = engine_timeout

    def routes(self) -> list[Route]:
        """Return `POST /stage/cut`, `kill`, `freeze` and `thaw`."""

        async def cut(http: Request) -> Response:
            """Close the connections that read a stream."""
            _check_page(http)
            number = self.cut(http.query_params.get("stream", ""))
            return JSONResponse({"connections": number})

        def signals(number: signal.Signals, done: str) -> Endpoint:
            async def endpoint(http: Request) -> Response:
                _check_page(http)
                self._signal(number, done)
                return JSONResponse({"engine_timeout": self.engine_timeout})

            return endpoint

        engine = {
            "kill": signals(signal.SIGKILL, "killed"),
            "freeze": signals(signal.SIGSTOP, "froze"),
            "thaw": signals(signal.SIGCONT, "thawed"),
        }
        return [
            Route("/stage/cut", cut, methods=["POST"], include_in_schema=False),
            *(
                Route(f"/stage/{name}", act, methods=["POST"], include_in_schema=False)
                for name, act in engine.items()
            ),
        ]

    def cut(self, stream_id: str) -> int:
        """Close the connections that read this stream. Return how many there were."""
        number = self._liveness.stop_readers_of(stream_id)
        log.warning("the stage cut %d connections", number)
        return number

    def _signal(self, number: signal.Signals, done: str) -> None:
        """Send a signal to the engine's process and its children. Raises Problem."""
        pid = self._engine.pid
        try:
            if pid is None:
                raise ProcessLookupError
            os.killpg(pid, number)
        except ProcessLookupError:
            raise Problem(
                "engine_down", "The engine is restarting already. Try again in a moment."
            ) from None
        log.warning("the stage %s the engine's process", done)


def may_have_stage(settings: Settings) -> bool:
    """Return True if nobody but the user of this machine could use the stage."""
    has_keys = settings.api_key or settings.admin_key or settings.keys
    is_forwarded = settings.allow_host or settings.trusted_proxy
    is_private = is_loopback(settings.host) and not (has_keys or is_forwarded)
    return is_private and settings.processes == 1


def stage_of(settings: Settings, engine: object, liveness: Liveness) -> Stage | None:
    """Return the stage if `demo` is set, otherwise None. Raises StartError if it may not be."""
    if not settings.demo:
        return None
    if not may_have_stage(settings):
        raise StartError(
            "--demo lets everyone who reaches the page kill the engine.",
            "Use it without keys, on this machine alone (without --allow-host and --trusted-proxy),"
            " and with one process.",
        )
    if not isinstance(engine, EngineProcess):
        raise StartError(
            "--demo needs an engine that runs on this machine.", "Serve without --demo."
        )
    return Stage(engine, liveness, settings.engine_timeout_chosen)


def _check_page(http: Request) -> None:
    """Raise the Problem of an unknown address unless a page of this server sends the request."""
    host = http.headers.get("host", "")
    name = host.rpartition(":")[0] or host
    ours = f"{http.url.scheme}://{host}"
    if http.headers.getlist("origin") != [ours] or not is_loopback(name.strip("[]")):
        raise Problem("no_such_route", "There is nothing at this address.")
