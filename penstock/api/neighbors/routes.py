"""llama-server's and vLLM's own routes, which their clients probe: `/props`, `/tokenize` and more.

Errors have OpenAI's form, as on those servers.
"""

from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock import __version__
from penstock.api.answering import Answering
from penstock.api.description import Api
from penstock.api.dialect import Call, Dialect
from penstock.api.headers import asks_to_resume, timeout_of
from penstock.api.neighbors.fields import (
    CompletionOfLlama,
    DetokenizeRequest,
    InfillOfLlama,
    TokenizeRequest,
    detokenize_request,
    template_request,
    tokenize_request,
)
from penstock.api.neighbors.frames import CompletionForm
from penstock.api.openai.chat import ChatRequest
from penstock.api.openai.errors import error_response
from penstock.api.openai.fields import parse_fields
from penstock.api.serving import ServedModel, llama_sampling
from penstock.api.tolerance import Notes
from penstock.engine.protocol import ModelInfo
from penstock.errors import Problem
from penstock.request import Request

_NO_EMBEDDINGS = "This server makes no embeddings. Ask a server that serves an embedding model."
_REFUSED = {
    "/embeddings": _NO_EMBEDDINGS,
    "/embedding": _NO_EMBEDDINGS,
    "/v1/embeddings": _NO_EMBEDDINGS,
}


class _Completions:
    """Turns the bodies of `/completion` and `/infill` into calls for a served model."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def complete(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
        """Return the call that continues a text. Raises Problem."""
        return self._call(parse_fields(CompletionOfLlama, body, {}, notes), http)

    def infill(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
        """Return the call that fills a gap. Raises Problem."""
        return self._call(parse_fields(InfillOfLlama, body, {}, notes), http)

    def _call(self, asked: CompletionOfLlama, http: HttpRequest) -> Call:
        name = self._model.named(asked.model)
        info = self._model.info(name)
        asked.check(info)
        return Call(
            requests=asked.requests(info),
            form=CompletionForm(name),
            streamed=bool(asked.stream),
            resumable=asks_to_resume(http, streamed=bool(asked.stream)),
            timeout=timeout_of(http),
            max_tokens=asked.max_tokens_asked,
        )


def neighbors_api(answering: Answering, model: ServedModel) -> Api:
    """Return the routes of llama-server's and vLLM's that have no other API here."""
    completions = _Completions(model)
    completion = Dialect(
        "complete_as_llama_server",
        "Continue a text, in llama-server's form.",
        CompletionOfLlama,
        completions.complete,
        (CompletionForm,),
    )
    infill = Dialect(
        "infill_as_llama_server",
        "Fill a gap in a text, in llama-server's form.",
        InfillOfLlama,
        completions.infill,
        (CompletionForm,),
    )

    async def version(_: HttpRequest) -> Response:
        """Return the server's version."""
        return JSONResponse({"version": __version__})

    async def props(_: HttpRequest) -> Response:
        """Describe the served model, in llama-server's form."""
        return JSONResponse(_props(model))

    async def tokenize(http: HttpRequest) -> Response:
        """Tokenize a text or a conversation."""
        info = model.info()

        def read(body: dict[str, Any], notes: Notes) -> Request:
            nonlocal info
            info = info_for(body)
            return tokenize_request(body, info, notes)

        counted, headers = await answering.count(http, read)
        answer = {
            "tokens": counted.token_ids,
            "count": len(counted.token_ids),
            "max_model_len": info.context_length,
        }
        return JSONResponse(answer, headers=headers)

    async def detokenize(http: HttpRequest) -> Response:
        """Return the text of tokens."""
        counted, headers = await answering.count(
            http, lambda body, notes: detokenize_request(body, info_for(body), notes)
        )
        return JSONResponse({"content": counted.text, "prompt": counted.text}, headers=headers)

    async def apply_template(http: HttpRequest) -> Response:
        """Render a conversation with the model's chat template."""
        counted, headers = await answering.count(
            http, lambda body, notes: template_request(body, info_for(body), notes)
        )
        return JSONResponse({"prompt": counted.text}, headers=headers)

    def info_for(body: dict[str, Any]) -> ModelInfo:
        name = body.get("model")
        return model.info(model.named(name) if isinstance(name, str) else "")

    answering.fields |= {
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
        "/apply-template": ChatRequest,
    }
    other = answering.route("/completions", completion)
    other.include_in_schema = False
    routes = [
        answering.route("/completion", completion),
        other,
        answering.route("/infill", infill),
        Route("/tokenize", tokenize, methods=["POST"], name="tokenize"),
        Route("/detokenize", detokenize, methods=["POST"], name="detokenize"),
        Route("/apply-template", apply_template, methods=["POST"], name="apply_template"),
        Route("/props", props, name="get_props"),
        Route("/v1/props", props, include_in_schema=False),
        Route("/version", version, name="get_version"),
        *(_refusing(path, why) for path, why in _REFUSED.items()),
    ]
    description = "penstock.api.neighbors.description"
    return Api(routes, error_response, prefix="/v1/props/", description=description)


def _props(model: ServedModel) -> dict[str, Any]:
    """Return llama-server's `props`. Raises Problem while the model is loading."""
    info = model.info()
    params = llama_sampling(info)
    return {
        "default_generation_settings": {"n_ctx": info.context_length, "params": params},
        "total_slots": info.slots,
        "model_alias": model.name,
        "chat_template": info.facts.chat_template,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"penstock {__version__}",
        # For another Penstock in front of this one.
        "penstock": {
            "supports": info.supports,
            "vocabulary_size": info.vocabulary_size,
            "sampling": msgspec.to_builtins(info.sampling),
        },
    }


def _refusing(path: str, why: str) -> Route:
    """Return a route that refuses every request in a sentence."""

    async def refuse(_: HttpRequest) -> Response:
        raise Problem("not_served", why)

    return Route(path, refuse, methods=["POST"], include_in_schema=False)
