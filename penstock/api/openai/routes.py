"""OpenAI's API under `/v1`: completions and chats, as OpenAI's own clients speak it."""

import time
from typing import Any

from starlette.requests import Request as HttpRequest

from penstock.api.answering import Answering
from penstock.api.description import Api
from penstock.api.dialect import Call, Dialect
from penstock.api.headers import asks_to_resume, invalid, timeout_of
from penstock.api.openai.chat import ChatRequest, parse_chat
from penstock.api.openai.completion import CompletionRequest, parse_completion
from penstock.api.openai.errors import error_response
from penstock.api.openai.fields import Common
from penstock.api.openai.frames import ChatForm, CompletionForm, FunctionsForm
from penstock.api.openai.responses.routes import ResponseRoutes
from penstock.api.openai.responses.stored import StoredResponses
from penstock.api.serving import ServedModel
from penstock.api.tolerance import Notes
from penstock.request import Request


class _Calls:
    """Turns the bodies of OpenAI's requests into calls for a served model."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def chat(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
        """Return the call for `/v1/chat/completions`. Raises Problem."""
        asked = parse_chat(body, notes)
        requests, shown = self._prepare(asked, "chatcmpl-")
        shown["hides_reasoning"] = asked.include_reasoning is False
        form = FunctionsForm if asked.functions else ChatForm
        shown["echoes"] = ("",) * asked.num_choices
        return self._call(asked, http, requests, form(**shown))

    def completion(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
        """Return the call for `/v1/completions`. Raises Problem."""
        asked = parse_completion(body, notes)
        requests, shown = self._prepare(asked, "cmpl-")
        shown["num_echoed_top"] = asked.logprobs if asked.echoes_logprobs else None
        form = CompletionForm(**shown, echoes=tuple(asked.echoes))
        return self._call(asked, http, requests, form)

    def _prepare(self, asked: Common, prefix: str) -> tuple[list[Request], dict[str, Any]]:
        """Return the requests, and the fields that both forms share."""
        name = self._model.named(asked.model)
        info = self._model.info(name)
        asked.check(info)
        requests = asked.requests(info)
        options = asked.stream_options
        shown = {
            "id": prefix + requests[0].id,
            "created": int(time.time()),
            "model": name,
            "include_usage": bool(options and options.include_usage),
            "continuous_usage": bool(options and options.continuous_usage_stats),
            "has_logprobs": asked.top_logprobs_asked is not None,
            "num_per_prompt": asked.num_choices,
            "has_token_ids": bool(asked.return_token_ids),
            "has_prompt_logprobs": asked.prompt_logprobs is not None,
        }
        return requests, shown

    def _call(
        self,
        asked: Common,
        http: HttpRequest,
        requests: list[Request],
        form: ChatForm | CompletionForm,
    ) -> Call:
        return Call(
            requests=requests,
            form=form,
            streamed=bool(asked.stream),
            resumable=_is_resumable(http, asked, len(requests)),
            timeout=timeout_of(http),
            max_tokens=asked.max_tokens_asked,
            num_per_prompt=asked.num_choices,
        )


def openai_apis(answering: Answering, model: ServedModel, stored: StoredResponses) -> list[Api]:
    """Return the routes under `/v1` that generate, and those of stored responses."""
    calls = _Calls(model)
    chat = Dialect(
        "create_chat_completion",
        "Answer a conversation, streamed or whole.",
        ChatRequest,
        calls.chat,
        (ChatForm, FunctionsForm),
    )
    completion = Dialect(
        "create_completion",
        "Continue one or several texts, streamed or whole.",
        CompletionRequest,
        calls.completion,
        (CompletionForm,),
    )

    without_prefix = answering.route("/chat/completions", chat)  # some clients leave out /v1
    without_prefix.include_in_schema = False
    routes = [
        without_prefix,
        answering.route("/v1/chat/completions", chat),
        answering.route("/v1/completions", completion),
    ]
    responses = ResponseRoutes(answering, model, stored).routes()
    return [
        Api(routes, error_response, prefix="/v1/", description="penstock.api.openai.description"),
        Api(
            responses,
            error_response,
            prefix="/v1/responses",
            description="penstock.api.openai.responses.description",
        ),
    ]


def _is_resumable(http: HttpRequest, asked: Common, num_choices: int) -> bool:
    """Return True if the client asks for a stream that it can resume. Raises Problem."""
    is_resumable = asks_to_resume(http, streamed=bool(asked.stream))
    if is_resumable and num_choices > 1:
        field = "n" if asked.num_choices > 1 else "prompt"
        raise invalid(field, "Only an answer with one choice can be resumable.")
    return is_resumable
