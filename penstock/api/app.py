"""The ASGI application: the one place where its parts are put together."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from penstock import __version__
from penstock.api.auth import KeyCheck, KeyRing
from penstock.api.body import Bodies
from penstock.api.exchange import Exchanges
from penstock.api.health import health_routes
from penstock.api.host import HostCheck, is_loopback
from penstock.api.metrics import metrics_registry, metrics_routes
from penstock.api.native import GenerateRequest, native_routes
from penstock.api.openai import openai_routes
from penstock.api.openai_fields import ChatRequest, CompletionRequest
from penstock.api.page import page_routes
from penstock.api.problems import add_problem_handlers
from penstock.api.pulse import Pulse
from penstock.engine.child import ChildEngine
from penstock.settings import Settings
from penstock.stream.streams import Streams

_REASONS = {"loading": "loading", "down": "engine down", "stopped": "draining"}

_BODIES: dict[str, type[BaseModel]] = {
    "/generate": GenerateRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}


def create_app(
    settings: Settings,
    engine: ChildEngine,
    streams: Streams,
    pulse: Pulse,
    bodies: Bodies,
    keys: KeyRing,
) -> ASGIApp:
    """An application that serves `engine` through `streams` to those that have one of `keys`."""
    app = FastAPI(
        title="Penstock",
        version=__version__,
        description="The streaming server for language models.",
        docs_url=None,  # its page loads scripts from a third party
        redoc_url=None,
        redirect_slashes=False,  # they send a client to wherever its Host header says
    )

    def unready() -> str | None:
        if streams.draining:
            return "draining"
        return "engine down" if streams.is_recovering else _REASONS.get(engine.state)

    add_problem_handlers(app)
    app.include_router(native_routes(streams, pulse, bodies))
    app.include_router(
        openai_routes(streams, pulse, bodies, settings.served_name, lambda: engine.info)
    )
    app.include_router(health_routes(unready))
    app.include_router(metrics_routes(metrics_registry(settings, engine, streams, pulse)))
    app.include_router(page_routes(settings.served_name))
    app.add_middleware(KeyCheck, keys=keys)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origin,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Last-Event-ID",
            "X-Penstock-Resumable",
            "X-Penstock-Timeout",
            "X-Request-ID",
        ],
        expose_headers=["X-Stream-ID", "X-Request-ID", "Server-Timing", "Retry-After"],
    )
    names = {settings.host.lower(), *(name.lower() for name in settings.allow_host)}
    is_local = is_loopback(settings.host)

    def hosts() -> set[str] | None:
        return names if settings.allow_host or (is_local and not keys) else None

    app.add_middleware(HostCheck, hosts=hosts, origins=settings.cors_origin)
    _describe_bodies(app)
    # Outside of everything, so that an answer to a bug in here has an id and a line as well.
    return Exchanges(app, streams.meter, log_prompts=settings.log_prompts)


def _describe_bodies(app: FastAPI) -> None:
    """Put the bodies of requests into the OpenAPI page: our own parser hides them from FastAPI."""
    openapi = app.openapi

    def described() -> dict[str, Any]:
        page = openapi()
        schemas = page.setdefault("components", {}).setdefault("schemas", {})
        for path, model in _BODIES.items():
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
            page["paths"][path]["post"]["requestBody"] = {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{model.__name__}"}
                    }
                },
            }
        return page

    app.openapi = described  # type: ignore[method-assign] # FastAPI's documented way
