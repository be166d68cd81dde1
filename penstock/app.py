"""The ASGI application: the one place where its parts are put together."""

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from penstock.api.health import health_routes
from penstock.api.metrics import metrics_registry, metrics_routes
from penstock.api.native.routes import GenerateRequest, native_routes
from penstock.api.openai.fields import ChatRequest, CompletionRequest
from penstock.api.openai.routes import openai_routes
from penstock.api.openapi import description_route
from penstock.api.page import page_routes
from penstock.engine.protocol import EngineHandle
from penstock.settings import Settings
from penstock.stream.registry import Streams
from penstock.web.access import AccessMiddleware
from penstock.web.auth import KeyCheck, KeyRing
from penstock.web.body import BodyReader
from penstock.web.host import HostCheck, is_loopback
from penstock.web.liveness import Liveness
from penstock.web.problems import PROBLEM_HANDLERS

_REASONS = {"loading": "loading", "down": "engine down", "stopped": "draining"}

_BODIES: dict[str, type[BaseModel]] = {
    "/generate": GenerateRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}


def create_app(
    settings: Settings,
    engine: EngineHandle,
    streams: Streams,
    liveness: Liveness,
    bodies: BodyReader,
    keys: KeyRing,
) -> AccessMiddleware:
    """An application that serves `engine` through `streams` to those that have one of `keys`."""

    def unready() -> str | None:
        if streams.draining:
            return "draining"
        return "engine down" if streams.is_recovering else _REASONS.get(engine.state)

    names = {settings.host.lower(), *(name.lower() for name in settings.allow_host)}
    is_local = is_loopback(settings.host)

    def hosts() -> set[str] | None:
        return names if settings.allow_host or (is_local and not keys) else None

    routes = [
        *native_routes(streams, liveness, bodies),
        *openai_routes(streams, liveness, bodies, settings.served_name, lambda: engine.info),
        *health_routes(unready),
        *metrics_routes(metrics_registry(settings, engine, streams, liveness)),
        *page_routes(settings.served_name),
    ]
    app = Starlette(
        routes=[*routes, description_route(routes, _BODIES)],
        middleware=[
            Middleware(HostCheck, hosts=hosts, origins=settings.cors_origin),
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origin,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
                expose_headers=["X-Stream-ID", "X-Request-ID", "Server-Timing", "Retry-After"],
            ),
            Middleware(KeyCheck, keys=keys),
        ],
        exception_handlers=PROBLEM_HANDLERS,
    )
    app.router.redirect_slashes = False  # it sends a client to wherever its Host header says
    # Outside of everything, so that an answer to a bug in here has an id and a line as well.
    return AccessMiddleware(app, streams.meter, log_prompts=settings.log_prompts)
