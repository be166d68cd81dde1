"""Ollama's API under `/api`, as its clients speak it, for a served model."""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.answering import Answering
from penstock.api.description import NDJSON, Api
from penstock.api.dialect import Answer, Call, Dialect
from penstock.api.fields import LEFT_OUT, Strict, parse
from penstock.api.headers import asks_to_resume, timeout_of
from penstock.api.ollama.errors import error_response
from penstock.api.ollama.fields import (
    Common,
    ModelName,
    OllamaChatRequest,
    OllamaGenerateRequest,
    parse_fields,
)
from penstock.api.ollama.frames import ChatForm, GenerateForm, LineForm
from penstock.api.ollama.models import API_VERSION, Catalog, timestamp
from penstock.api.serving import ServedModel
from penstock.api.tolerance import Notes
from penstock.errors import Problem

_ONE_MODEL = "This server serves one model, which its operator chooses at its start."
_NO_EMBEDDINGS = "This server makes no embeddings. Ask a server that serves an embedding model."
# Ollama's routes that change its collection of models, or that need another kind of model.
_REFUSED: dict[str, tuple[str, str]] = {
    "/api/embed": ("POST", _NO_EMBEDDINGS),
    "/api/embeddings": ("POST", _NO_EMBEDDINGS),
    "/api/create": ("POST", _ONE_MODEL),
    "/api/copy": ("POST", _ONE_MODEL),
    "/api/push": ("POST", _ONE_MODEL),
    "/api/delete": ("DELETE", _ONE_MODEL),
    "/api/blobs/{digest}": ("POST", _ONE_MODEL),
}


class OllamaModelRequest(Strict):
    """The name of a model. `name` is the older name of `model`."""

    model: ModelName | None = None
    name: ModelName | None = None
    verbose: bool | None = None


class OllamaPullRequest(OllamaModelRequest):
    """The name of a model to download. Only the served model is there."""

    stream: bool | None = None
    insecure: Annotated[bool | None, LEFT_OUT] = None


class _Calls:
    """Turns the bodies of requests into calls for a served model."""

    def __init__(self, model: ServedModel, catalog: Catalog) -> None:
        self._model = model
        self._catalog = catalog

    def chat(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call | Answer:
        """Return the call for `/api/chat`. Raises Problem."""
        asked = parse_fields(OllamaChatRequest, body, notes)
        return self._call(asked, http, ChatForm)

    def generate(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call | Answer:
        """Return the call for `/api/generate`. Raises Problem."""
        asked = parse_fields(OllamaGenerateRequest, body, notes)
        return self._call(asked, http, GenerateForm)

    def _call(self, asked: Common, http: HttpRequest, form: type[LineForm]) -> Call | Answer:
        name = self._catalog.named(asked.model)
        shown = form(
            name,
            timestamp(),
            hides_thinking=asked.think is False,
            has_logprobs=bool(asked.logprobs),
        )
        info = self._catalog.info(name)
        if asked.is_empty:  # Ollama's clients load the model so, and this one is loaded
            loaded = {"done": True, "done_reason": "load"}
            return Answer({**shown.head(), **shown.part(""), **loaded})
        is_streamed = asked.stream is not False
        return Call(
            requests=[asked.request(info)],
            form=shown,
            streamed=is_streamed,
            resumable=asks_to_resume(http, streamed=is_streamed),
            timeout=timeout_of(http),
            max_tokens=asked.max_tokens,
        )


def ollama_api(answering: Answering, model: ServedModel) -> Api:
    """Return the routes under `/api`."""
    catalog = Catalog(model)
    calls = _Calls(model, catalog)
    chat = Dialect(
        "ollama_chat",
        "Answer a conversation, streamed or whole.",
        OllamaChatRequest,
        calls.chat,
        (ChatForm,),
    )
    generate = Dialect(
        "ollama_generate",
        "Answer a prompt or continue a text, streamed or whole.",
        OllamaGenerateRequest,
        calls.generate,
        (GenerateForm,),
    )

    async def version(_: HttpRequest) -> Response:
        """Return the version of Ollama whose API this is."""
        return JSONResponse({"version": API_VERSION})

    async def tags(_: HttpRequest) -> Response:
        """List the names of the served models."""
        return JSONResponse(catalog.tags())

    async def running(_: HttpRequest) -> Response:
        """List the loaded models: the served ones."""
        return JSONResponse(catalog.running())

    async def show(http: HttpRequest) -> Response:
        """Describe a served model."""
        asked, headers = await answering.read(
            http, lambda body, notes: parse(OllamaModelRequest, body, notes)
        )
        name = catalog.named(asked.model or asked.name)
        return JSONResponse(catalog.show(name), headers=headers)

    async def pull(http: HttpRequest) -> Response:
        """Say that the served model is there."""
        asked, headers = await answering.read(
            http, lambda body, notes: parse(OllamaPullRequest, body, notes)
        )
        catalog.named(asked.model or asked.name)
        if asked.stream is False:
            return JSONResponse({"status": "success"}, headers=headers)
        lines = [{"status": "pulling manifest"}, {"status": "success"}]
        body = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        return Response(body, media_type=NDJSON, headers=headers)

    answering.fields |= {"/api/show": OllamaModelRequest, "/api/pull": OllamaPullRequest}
    routes = [
        answering.route("/api/chat", chat),
        answering.route("/api/generate", generate),
        Route("/api/version", version, name="ollama_version"),
        Route("/api/tags", tags, name="ollama_tags"),
        Route("/api/ps", running, name="ollama_running"),
        Route("/api/show", show, methods=["POST"], name="ollama_show"),
        Route("/api/pull", pull, methods=["POST"], name="ollama_pull"),
        *(_refusing(path, method, why) for path, (method, why) in _REFUSED.items()),
    ]
    return Api(
        routes, error_response, prefix="/api/", description="penstock.api.ollama.description"
    )


def _refusing(path: str, method: str, why: str) -> Route:
    """Return a route that refuses every request in a sentence."""

    async def refuse(_: HttpRequest) -> Response:
        raise Problem("not_served", why)

    return Route(path, refuse, methods=[method], include_in_schema=False)
