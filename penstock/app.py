"""Puts the ASGI application together from its parts."""

from dataclasses import dataclass

from starlette.types import ASGIApp

from penstock.admin import create_admin_app
from penstock.api.answering import LIMIT_HEADER, Answering
from penstock.api.anthropic.routes import anthropic_api
from penstock.api.description import Api
from penstock.api.health import health_routes
from penstock.api.joining import REPLAYED, Joining
from penstock.api.live.board import Board
from penstock.api.live.routes import live_routes
from penstock.api.metrics import levels_of, metrics_registry, metrics_routes
from penstock.api.models.routes import models_api
from penstock.api.native.errors import problem_details
from penstock.api.native.routes import native_api
from penstock.api.neighbors.routes import neighbors_api
from penstock.api.ollama.routes import ollama_api
from penstock.api.openai.responses.stored import StoredResponses
from penstock.api.openai.routes import openai_apis
from penstock.api.openapi import openapi_route
from penstock.api.page import page_routes
from penstock.api.serving import ServedModel
from penstock.api.siblings import Siblings
from penstock.api.stage import Stage
from penstock.api.tolerance import HEADER
from penstock.api.upstreams import up_by_model
from penstock.engine.protocol import EngineHandle
from penstock.observe.history import History
from penstock.settings import OLLAMA_PORT, Settings
from penstock.store.names import Names
from penstock.stream.memory import MemoryGuard
from penstock.stream.quotas import TOKEN_HEADERS
from penstock.stream.registry import Streams
from penstock.stream.unread import Unread
from penstock.web.access import AccessMiddleware
from penstock.web.auth import KeyCheck
from penstock.web.body import BodyReader
from penstock.web.cors import Cors
from penstock.web.gate import Gate
from penstock.web.granian import GranianPeer
from penstock.web.host import HostCheck, is_loopback
from penstock.web.keys import KeyRing
from penstock.web.liveness import Liveness
from penstock.web.problems import ErrorResponses
from penstock.web.proxies import TrustedProxies

EXPOSED_HEADERS = [
    "X-Stream-ID",
    "X-Request-ID",
    "Server-Timing",
    "Retry-After",
    "Retry-After-Ms",
    "X-Should-Retry",
    HEADER,
    LIMIT_HEADER,
    REPLAYED,
    *TOKEN_HEADERS,
]
_REASONS = {"loading": "loading", "down": "engine down", "stopped": "draining"}


@dataclass(frozen=True)
class Apps:
    """The applications of one server: for clients, and for the admin port if there is one."""

    clients: AccessMiddleware
    admin: AccessMiddleware | None


def create_apps(
    settings: Settings,
    engine: EngineHandle,
    streams: Streams,
    unread: Unread,
    liveness: Liveness,
    bodies: BodyReader,
    keys: KeyRing,
    proxies: TrustedProxies,
    memory: MemoryGuard,
    shared_names: Names,
    history: History,
    siblings: Siblings | None = None,
    stage: Stage | None = None,
) -> Apps:
    """Return the application that serves `streams` to the owners of `keys`, and the admin port's.

    `shared_names` has what the replicas that share a store know of each other's requests.
    `history` has the server's last minutes.
    `siblings` are the other server processes at this address, if there are any. A `stage` lets the
    page break things.
    """

    def unready() -> str | None:
        if streams.draining or streams.is_leaving:
            return "draining"
        if streams.fleet is not None and streams.fleet.problem:
            return "store down"
        if streams.memory_is_full:
            return "memory full"
        return "engine down" if streams.is_recovering else _REASONS.get(engine.state)

    names = {settings.host.lower(), *(name.lower() for name in settings.allow_host)}
    is_local = is_loopback(settings.host)

    def num_processes() -> int:
        return 1 if siblings is None else len(siblings.states())

    def hosts() -> set[str] | None:
        return names if settings.allow_host or (is_local and not keys) else None

    joining = Joining(shared_names, streams, settings.max_timeout, settings.retain)
    answering = Answering(streams, unread, liveness, bodies, joining, strict=settings.strict)
    model = ServedModel(settings.served_names, lambda: engine.info)

    def name_of_model() -> str:
        """Return the model's name; an engine may have found it out itself."""
        model.loaded()
        return model.name

    stored = StoredResponses(
        settings.retain_responses,
        settings.retain_responses_bytes,
        streams,
        None if streams.fleet is None else shared_names,
    )
    # To add an API, add its line here.
    apis = [
        native_api(answering, model),
        *openai_apis(answering, model, stored),
        anthropic_api(answering, model),
        ollama_api(answering, model),
        models_api(model),
        neighbors_api(answering, model),
    ]
    levels = levels_of(settings, engine, streams, liveness, memory, name_of_model)
    registry = metrics_registry(streams, levels)
    if siblings is not None:
        siblings.attach(registry, lambda: unready() or "ready")

    def upstreams() -> dict[str, tuple[int, int]]:
        return up_by_model(engine.upstreams)

    for_machines = [
        *health_routes(unready, upstreams, siblings),
        *metrics_routes(registry, siblings),
    ]
    others = [
        *for_machines,
        *live_routes(
            Board(streams, history, name_of_model, num_processes),
            keys,
            settings.stall_timeout,
            lambda: streams.draining and not len(streams),
        ),
        *page_routes(name_of_model, OLLAMA_PORT if settings.ollama else 0, stage),
        *(stage.routes() if stage is not None else []),
    ]
    apis.append(
        Api(others, problem_details, prefix="/", description="penstock.api.server_description")
    )
    errors = ErrorResponses(apis)
    routes = [route for api in apis for route in api.routes]

    def cors(inner: ASGIApp) -> ASGIApp:
        return Cors(
            inner,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=EXPOSED_HEADERS,
        )

    app = Gate(
        [*routes, openapi_route(apis, answering.fields)],
        HostCheck(hosts, settings.cors_origin),
        KeyCheck(keys),
        errors,
        cors,
        always_cors=bool(settings.cors_origin),
    )
    # Outside everything, so that a response to a bug in here also has an id and a log line.
    clients = AccessMiddleware(
        app, streams.meter, GranianPeer, proxies=proxies, log_prompts=settings.log_prompts
    )
    if not settings.admin_port:
        return Apps(clients, None)
    return Apps(clients, create_admin_app(for_machines, settings.admin_host, streams.meter))
