"""Parses bodies as each route does, without a server: what would the engine and the client get?

The model's engine supports every feature.
"""

import json
import re
from collections.abc import Callable
from typing import Any, get_args

import msgspec
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from penstock.api.anthropic.fields import CountTokensRequest
from penstock.api.anthropic.fields import parse_fields as parse_anthropic
from penstock.api.anthropic.routes import COUNT_TOKENS, anthropic_api
from penstock.api.dialect import Answer, Call, Dialect
from penstock.api.native.routes import native_api
from penstock.api.neighbors.fields import detokenize_request, template_request, tokenize_request
from penstock.api.neighbors.routes import neighbors_api
from penstock.api.ollama.routes import ollama_api
from penstock.api.openai.routes import openai_apis
from penstock.api.serving import ServedModel
from penstock.api.tolerance import Notes
from penstock.engine.protocol import Feature, ModelInfo
from penstock.errors import Problem
from penstock.request import Request
from penstock.stream.quotas import Owner
from penstock.web.access import KEY, OWNER

INFO = ModelInfo("rill", "mock", 4096, 4, get_args(Feature), 2048)
Parse = Callable[[dict[str, Any], HttpRequest, Notes], Call | Answer | Request]
_TIME = re.compile(r'"(created|created_at)":("[^"]*"|\d+)')


class _Routes:
    """Collects the parsers of the routes, in place of what answers requests."""

    def __init__(self) -> None:
        self.parsers: dict[str, Parse] = {}
        self.fields: dict[str, type[BaseModel]] = {}

    def route(self, path: str, dialect: Dialect) -> Route:
        self.parsers[path] = dialect.parse
        self.fields[path] = dialect.fields
        return Route(path, lambda _: Response(), methods=["POST"])


class _NothingStored:
    """No response is stored."""

    is_shared = False
    until_saved = None

    def here(self, _: str) -> None:
        return None


class _Access:
    """The record of a request."""

    id = "a"


def _collected() -> _Routes:
    routes: Any = _Routes()
    stored: Any = _NothingStored()
    model = ServedModel(("rill",), lambda: INFO)
    for add in (native_api, neighbors_api, ollama_api, anthropic_api):
        add(routes, model)
    openai_apis(routes, model, stored)
    collected: _Routes = routes
    collected.parsers |= {
        COUNT_TOKENS: lambda body, _, notes: parse_anthropic(
            CountTokensRequest, body, notes
        ).to_request(INFO, max_tokens=0),
        "/tokenize": lambda body, _, notes: tokenize_request(body, INFO, notes),
        "/detokenize": lambda body, _, notes: detokenize_request(body, INFO, notes),
        "/apply-template": lambda body, _, notes: template_request(body, INFO, notes),
    }
    return collected


ROUTES = _collected()


def parsed(route: str, body: dict[str, Any]) -> tuple[str, tuple[str, ...]] | Problem:
    """Return what becomes of a body, as text, and the names of ignored fields; or the refusal."""
    notes = Notes()
    scope = {"type": "http", "headers": [], "state": {}, OWNER: Owner("a"), KEY: _Access()}
    try:
        call = ROUTES.parsers[route](body, HttpRequest(scope), notes)
    except Problem as problem:
        return problem
    return _shown(call), tuple(notes.names)


def _shown(call: Call | Answer | Request) -> str:
    """Return everything that a body has become, without what is random or the time."""
    if isinstance(call, Answer):
        return _TIME.sub("", json.dumps(call.content))
    if isinstance(call, Request):
        call = Call([call], msgspec.Struct(), streamed=False)  # type: ignore[arg-type]
    form = msgspec.to_builtins(call.form)
    for name in ("tools", "tool_choice", "text"):  # a response repeats them, whatever they do
        form.get("shown", {}).pop(name, None)
    values = [
        *(msgspec.to_builtins(list(call.requests)), form, call.streamed, call.resumable),
        *(call.timeout, call.max_tokens, call.num_per_prompt, call.queue_events),
        *(call.status_events, call.at_once, call.on_opened is not None),
    ]
    text = json.dumps(values, separators=(",", ":"), sort_keys=True)
    for request in call.requests:
        text = text.replace(request.id, "")
    return _TIME.sub("", text)
