"""The routes of OpenAI's Responses API: create, read, follow, cancel and delete responses."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.answering import Answering
from penstock.api.dialect import Await, Call, Dialect
from penstock.api.event_ids import event_id_in
from penstock.api.headers import asks_to_resume, invalid, timeout_of
from penstock.api.openai.responses.fields import ResponseRequest, parse_response
from penstock.api.openai.responses.frames import ResponseForm, stream_id_of
from penstock.api.openai.responses.stored import (
    StoredResponse,
    StoredResponses,
    item_in,
    not_found,
    response_of_item,
)
from penstock.api.openai.responses.tools import ToolSet
from penstock.api.serving import ServedModel
from penstock.api.tolerance import Notes
from penstock.errors import Problem
from penstock.request import Message, Request
from penstock.stream.quotas import Owner
from penstock.stream.stream import Stream
from penstock.web.auth import owner_of

# How many earlier responses a request may have fetched from the store.
MAX_FETCHED = 16
MAX_ITEMS = 100
DEFAULT_ITEMS = 20


class ResponseRoutes:
    """The routes of the responses of `model`."""

    def __init__(self, answering: Answering, model: ServedModel, stored: StoredResponses) -> None:
        self._answering = answering
        self._model = model
        self._stored = stored

    def routes(self) -> list[Route]:
        """Return the routes under `/v1/responses`."""
        create = Dialect(
            "create_response",
            "Respond to an input, streamed or whole.",
            ResponseRequest,
            self._call,
            (ResponseForm,),
        )
        one = "/v1/responses/{response}"
        return [
            self._answering.route("/v1/responses", create),
            # An address of OpenAI's that this server does not have; it is no response's id.
            Route(
                "/v1/responses/compact", _no_such_route, methods=["POST"], include_in_schema=False
            ),
            Route(one, self._get, name="get_response"),
            Route(one, self._delete, methods=["DELETE"], name="delete_response"),
            Route(f"{one}/cancel", self._cancel, methods=["POST"], name="cancel_response"),
            Route(f"{one}/input_items", self._input_items, name="list_input_items"),
        ]

    def _call(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
        """Return the call for `/v1/responses`. Raises Problem."""
        asked = parse_response(body, notes)
        name = self._model.named(asked.model)
        info = self._model.info(name)
        asked.check(info)
        owner = owner_of(http.scope)
        earlier_ones = _Earlier(self._stored, http, owner, body)
        earlier: Sequence[Message] = ()
        if asked.previous_response_id:
            earlier = self._previous(asked.previous_response_id, earlier_ones)
        conversation = asked.converse(earlier, earlier_ones.item)
        (request,) = asked.requests(info)
        form = self._form(name, asked, request, body)
        is_background = bool(asked.background)

        def store(opened: Sequence[Stream]) -> None:
            response = StoredResponse(owner, opened[0], form, conversation, asked.input)
            self._stored.add(response, is_background=is_background)

        return Call(
            requests=[request],
            form=form,
            streamed=bool(asked.stream),
            resumable=is_background or asks_to_resume(http, streamed=bool(asked.stream)),
            timeout=timeout_of(http),
            max_tokens=asked.max_tokens_asked,
            on_opened=store if asked.is_stored else None,
            until_ready=self._stored.until_saved if asked.is_stored else None,
            at_once=is_background and not asked.stream,
        )

    def _previous(self, response_id: str, earlier: "_Earlier") -> list[Message]:
        previous = earlier.find(response_id)
        if previous is None:
            raise not_found()
        if previous.final is None:
            raise invalid("previous_response_id", "This response has not ended yet.")
        return previous.messages()

    def _form(
        self, name: str, asked: ResponseRequest, request: Request, body: dict[str, Any]
    ) -> ResponseForm:
        tools = asked.tools or ToolSet()
        renamed = {
            name: tool for name, tool in tools.shown.items() if tool.is_custom or tool.name != name
        }
        reasoning, text = asked.reasoning, asked.text
        form = text.format if text is not None else None
        shown = {
            "background": bool(asked.background),
            "completed_at": None,
            "frequency_penalty": request.sampling.frequency_penalty,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": asked.metadata or {},
            "model": name,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "presence_penalty": request.sampling.presence_penalty,
            "previous_response_id": asked.previous_response_id or None,
            "reasoning": {"effort": reasoning and reasoning.effort, "summary": None},
            "safety_identifier": None,
            "prompt_cache_key": None,
            "service_tier": "default",
            "store": asked.is_stored,
            "temperature": request.sampling.temperature,
            "text": {
                "format": {"type": "text"}
                if form is None
                else form.model_dump(by_alias=True, exclude_none=True)
            },
            "tool_choice": asked.tool_choice or "auto",
            "tools": [_shown_tool(tool) for tool in body.get("tools") or () if _is_used(tool)],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
        }
        return ResponseForm(
            stream_id=request.id,
            created_at=int(time.time()),
            shown=shown,
            tools=renamed,
            encrypts=asked.encrypts_reasoning,
            has_logprobs=asked.top_logprobs_asked is not None,
        )

    async def _find(self, http: HttpRequest) -> StoredResponse:
        return await self._stored.find(http.path_params["response"], owner_of(http.scope))

    async def _get(self, http: HttpRequest) -> Response:
        """Return a stored response, or follow its events.

        With `stream=true`, the events come from the one after `starting_after`.
        """
        response = await self._find(http)
        if http.query_params.get("stream") != "true":
            return JSONResponse(response.shown())
        stream_id = stream_id_of(response.id)
        after = http.query_params.get("starting_after")
        try:
            first = 0 if after is None else event_id_in(after).number_in(stream_id) + 1
        except Problem:
            raise invalid(
                "starting_after", "Give the sequence number of the last event you have."
            ) from None
        return await self._answering.resume(http, stream_id, first)

    async def _delete(self, http: HttpRequest) -> Response:
        """Forget a stored response. If it is still running, cancel it."""
        response = await self._find(http)
        await self._stored.remove(response)
        return JSONResponse({"id": response.id, "object": "response", "deleted": True})

    async def _cancel(self, http: HttpRequest) -> Response:
        """Cancel a response that runs in the background, and return it."""
        response = await self._find(http)
        if not response.form.shown["background"]:
            raise Problem("not_in_background", "Only a response in the background is cancelled so.")
        await self._stored.cancel(response)
        response = await self._find(http)  # as it is now, if it was another server's
        return JSONResponse(response.shown())

    async def _input_items(self, http: HttpRequest) -> Response:
        """List the items that a stored response was given, the newest first."""
        response = await self._find(http)
        query = http.query_params
        items = [
            {"id": f"in_{response.form.stream_id}_{number}", **item}
            for number, item in enumerate(response.input)
        ]
        if query.get("order", "desc") == "desc":
            items.reverse()
        ids = [item["id"] for item in items]
        if (after := query.get("after")) is not None:
            if after not in ids:
                raise invalid("after", "There is no such item.")
            items = items[ids.index(after) + 1 :]
        limit = query.get("limit", str(DEFAULT_ITEMS))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= MAX_ITEMS):
            raise invalid("limit", f"Give a number from 1 to {MAX_ITEMS}.")
        page = items[: int(limit)]
        return JSONResponse(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(page) < len(items),
            }
        )


class _Earlier:
    """The earlier responses that a request names, as its parser sees them.

    The parser cannot wait. If a response may be in the store, the parser raises `Await`, and runs
    again when the response was fetched.
    """

    def __init__(
        self, stored: StoredResponses, http: HttpRequest, owner: Owner, body: dict[str, Any]
    ) -> None:
        self._stored = stored
        self._owner = owner
        self._body = body
        state = http.scope.setdefault("state", {})
        self._fetched: dict[str, StoredResponse | None] = state.setdefault("responses", {})

    def find(self, response_id: str) -> StoredResponse | None:
        """Return a response that the owner may see. Raises Await."""
        found = self._stored.here(response_id) or self._fetched.get(response_id)
        if found is not None:
            return found if self._owner.may_see(found.owner) else None
        can_fetch = self._stored.is_shared and response_id not in self._fetched
        if can_fetch and len(self._fetched) < MAX_FETCHED:
            raise Await(lambda: self._fetch(response_id), self._body)
        return None

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Return an item of an earlier response, if there is one. Raises Await."""
        found = self.find(response_of_item(item_id))
        return None if found is None else item_in(found, item_id)

    async def _fetch(self, response_id: str) -> None:
        self._fetched[response_id] = None
        with contextlib.suppress(Problem):
            self._fetched[response_id] = await self._stored.find(response_id, self._owner)


async def _no_such_route(_: HttpRequest) -> Response:
    raise Problem("no_such_route", "This server does not compact conversations.")


def _is_used(tool: Any) -> bool:
    return tool.get("type") in ("function", "custom", "namespace")


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as OpenAI shows it, with every field of a function."""
    if tool["type"] != "function":
        return tool
    return {"description": None, "parameters": None, "strict": False, **tool}
