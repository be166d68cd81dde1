"""The list of models for OpenAI's and Anthropic's clients: `GET /v1/models` and `/v1/models/{id}`.

Both APIs have the same addresses. A request with the header `anthropic-version` gets Anthropic's
form, also of errors; every other request gets OpenAI's.
"""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from penstock.api.anthropic.errors import REQUEST_ID, AnthropicProblem
from penstock.api.description import Api
from penstock.api.openai.errors import error_response
from penstock.api.serving import ServedModel
from penstock.errors import Problem
from penstock.web.access import access_of

_VERSION = b"anthropic-version"


def models_api(model: ServedModel) -> Api:
    """Return the routes under `/v1/models`."""
    created = int(time.time())

    def for_openai(name: str) -> dict[str, Any]:
        loaded = model.loaded(name)
        described = {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "penstock",
            "context_length": None if loaded is None else loaded.context_length,
        }
        if loaded is not None:
            described["features"] = loaded.supports
        if loaded is not None and loaded.upstreams:
            described["upstreams"] = msgspec.to_builtins(loaded.upstreams)
        return described

    def for_anthropic(name: str) -> dict[str, Any]:
        length = for_openai(name)["context_length"]
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
            "lifecycle": "active",
            "max_input_tokens": length,
            "max_tokens": length,
        }

    async def list_models(http: HttpRequest) -> Response:
        """List the names of the served models."""
        model.named(None)  # so that the names that the engine gives its models are among them
        if not _speaks_anthropic(http.scope):
            return JSONResponse({"object": "list", "data": list(map(for_openai, model.listed))})
        page = {
            "data": list(map(for_anthropic, model.listed)),
            "has_more": False,
            "first_id": model.listed[0],
            "last_id": model.listed[-1],
        }
        return _for_anthropic(http, page)

    async def get_model(http: HttpRequest) -> Response:
        """Describe a served model."""
        name = model.named(http.path_params["model"].removesuffix("/"))
        if not _speaks_anthropic(http.scope):
            return JSONResponse(for_openai(name))
        return _for_anthropic(http, for_anthropic(name))

    routes = [
        Route("/v1/models", list_models, name="list_models"),
        Route("/v1/models/{model:path}", get_model, name="get_model"),
        # Some clients leave out /v1.
        Route("/models", list_models, include_in_schema=False),
        Route("/models/{model:path}", get_model, include_in_schema=False),
    ]
    description = "penstock.api.models.description"
    return Api(routes, _error, prefix="/v1/models/", description=description)


def _for_anthropic(http: HttpRequest, content: dict[str, Any]) -> Response:
    return JSONResponse(content, headers={REQUEST_ID: access_of(http.scope).id})


def _speaks_anthropic(scope: Scope) -> bool:
    return any(name == _VERSION for name, _ in scope["headers"])


class _EitherProblem(Response):
    """A problem as a response, in the form of the client's API."""

    def __init__(self, problem: Problem) -> None:
        self._openai = error_response(problem)
        self._anthropic = AnthropicProblem(problem)
        super().__init__(bytes(self._openai.body), self._openai.status_code)
        self.media_type = self._openai.media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the problem."""
        chosen = self._anthropic if _speaks_anthropic(scope) else self._openai
        await chosen(scope, receive, send)


def _error(problem: Problem) -> Response:
    return _EitherProblem(problem)
