"""Anthropic's API: `POST /v1/messages` and `/v1/messages/count_tokens`, as its clients speak it."""

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.answering import Answering
from penstock.api.anthropic.errors import REQUEST_ID, error_response
from penstock.api.anthropic.fields import CountTokensRequest, MessagesRequest, parse_fields
from penstock.api.anthropic.frames import MessageForm
from penstock.api.description import Api
from penstock.api.dialect import Call, Dialect
from penstock.api.headers import asks_to_resume, timeout_of
from penstock.api.serving import ServedModel
from penstock.api.tolerance import Notes
from penstock.web.access import access_of

MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
# Programs that are made for Anthropic's models ask for them by name, some of them always.
_MODELS_OF_ANTHROPIC = ("claude", "anthropic")


class _Calls:
    """Turns the bodies of requests into calls for a served model."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def messages(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
        """Return the call for `/v1/messages`. Raises Problem."""
        asked = parse_fields(MessagesRequest, body, notes)
        name = self.named(asked, notes)
        info = self._model.info(name)
        request = asked.request(info)
        return Call(
            requests=[request],
            form=MessageForm("msg_" + request.id, name, asked.display, info.context_length),
            streamed=bool(asked.stream),
            resumable=asks_to_resume(http, streamed=bool(asked.stream)),
            timeout=timeout_of(http),
            max_tokens=asked.max_tokens,
            headers=_headers(http),
        )

    def named(self, asked: CountTokensRequest, notes: Notes) -> str:
        """Return the model's name in the answer: as the request names it. Raises Problem.

        A model of Anthropic's means the served model, unless the server is strict.
        """
        name = asked.model or ""
        is_theirs = name.startswith(_MODELS_OF_ANTHROPIC) and name not in self._model.names
        if is_theirs and not notes.strict:
            notes.ignore("model")
            return name
        return self._model.named(name)


def anthropic_api(answering: Answering, model: ServedModel) -> Api:
    """Return the routes under `/v1/messages`."""
    calls = _Calls(model)
    messages = Dialect(
        "create_message",
        "Answer a conversation, streamed or whole.",
        MessagesRequest,
        calls.messages,
        (MessageForm,),
    )

    async def count_tokens(http: HttpRequest) -> Response:
        """Count the tokens of a conversation."""

        def count(body: dict[str, Any], notes: Notes) -> Any:
            asked = parse_fields(CountTokensRequest, body, notes)
            name = calls.named(asked, notes)
            return asked.to_request(model.info(name), max_tokens=0)

        counted, headers = await answering.count(http, count)
        return JSONResponse(
            {"input_tokens": len(counted.token_ids)}, headers=headers | _headers(http)
        )

    answering.fields[COUNT_TOKENS] = CountTokensRequest
    routes = [
        answering.route(MESSAGES, messages),
        Route(COUNT_TOKENS, count_tokens, methods=["POST"], name="count_message_tokens"),
    ]
    description = "penstock.api.anthropic.description"
    return Api(routes, error_response, prefix=MESSAGES + "/", description=description)


def _headers(http: HttpRequest) -> dict[str, str]:
    """Return Anthropic's name for the request's id."""
    return {REQUEST_ID: access_of(http.scope).id}
