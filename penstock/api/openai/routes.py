"""OpenAI's API under `/v1`: models, completions, chats, as OpenAI's own clients speak it.

In: HTTP requests. Out: streams opened, one for each choice, and read as one. Not known here:
engines; what chunks look like (`openai_frames`); which fields there are (`openai_fields`).
"""

import asyncio
import re
import time
from collections.abc import Callable

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.openai.fields import (
    ChatRequest,
    CompletionRequest,
    parse_chat,
    parse_completion,
)
from penstock.api.openai.frames import ChunkForm, ChunkFrames
from penstock.engine.protocol import ModelInfo
from penstock.errors import FieldError, InvalidFields, Problem
from penstock.events import Delta
from penstock.request import MAX_TIMEOUT_S
from penstock.stream.reader import MergedReader, news
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream
from penstock.web.access import access_of
from penstock.web.auth import owner_of
from penstock.web.body import BodyReader
from penstock.web.delivery import StreamResponse, watch_client
from penstock.web.liveness import Liveness
from penstock.web.problems import problem_of

RESUMABLE = "x-penstock-resumable"
TIMEOUT = "x-penstock-timeout"


def openai_routes(
    streams: Streams,
    liveness: Liveness,
    bodies: BodyReader,
    served_name: str,
    info: Callable[[], ModelInfo | None],
) -> list[Route]:
    """The routes under `/v1`. `info` tells of the model, once it is loaded."""
    created = int(time.time())

    def model_object() -> dict[str, object]:
        loaded = info()
        context_length = None if loaded is None else loaded.context_length
        return {
            "id": served_name,
            "object": "model",
            "created": created,
            "owned_by": "penstock",
            "context_length": context_length,
        }

    async def models(_: HttpRequest) -> Response:
        """The one model, as a list."""
        return JSONResponse({"object": "list", "data": [model_object()]})

    async def model(http: HttpRequest) -> Response:
        """The one model."""
        _check_model(http.path_params["model"], served_name)
        return JSONResponse(model_object())

    async def chat(http: HttpRequest) -> Response:
        """Answer a conversation."""
        asked = parse_chat(await read(http))
        return await respond(http, asked, "chatcmpl-", ("",) * asked.num_choices)

    async def completions(http: HttpRequest) -> Response:
        """Continue a text, or several."""
        asked = parse_completion(await read(http))
        return await respond(http, asked, "cmpl-", tuple(asked.echoes))

    async def read(http: HttpRequest) -> dict[str, object]:
        streams.check(owner_of(http.scope))
        return await bodies.read_object(http)

    async def respond(
        http: HttpRequest,
        asked: ChatRequest | CompletionRequest,
        prefix: str,
        echoes: tuple[str, ...],
    ) -> Response:
        _check_model(asked.model, served_name)
        resumable = _is_resumable(http, asked, len(echoes))
        loaded = info()
        if loaded is None:
            raise Problem(
                "engine_loading",
                "The model is still loading. Try again in a moment.",
                headers={"Retry-After": "1"},
            )
        asked.check(loaded)
        requests = asked.requests(loaded)
        options = asked.stream_options
        form = ChunkForm(
            is_chat=isinstance(asked, ChatRequest),
            id=prefix + requests[0].id,
            created=int(time.time()),
            model=served_name,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            has_logprobs=asked.top_logprobs_asked is not None,
            echoes=echoes,
            num_per_prompt=asked.num_choices,
        )
        timeout = _timeout_of(http)
        owner = owner_of(http.scope)
        if len(requests) > 1:
            streams.check(owner, num_streams=len(requests))
        opened: list[Stream] = []
        try:
            for request in requests:
                stream = streams.open(
                    request,
                    resumable=resumable,
                    opened_as=form,
                    owner=owner,
                    timeout=timeout,
                    first=opened[0] if opened else None,
                )
                opened.append(stream)
        except Problem:  # all of them, or none
            for each in opened:
                each.cancel()
            raise
        access_of(http.scope).carries_choices(opened, asked.num_choices)
        reader = MergedReader(opened)
        watch = watch_client(reader, http.receive)
        try:
            for stream in opened:
                if problem := await asyncio.shield(stream.was_accepted):
                    raise problem
            if asked.stream:
                frames = ChunkFrames(form, opened, with_ids=resumable)
                return StreamResponse(reader, frames, watch, liveness)
            response = await _whole(form, opened, reader)
        except BaseException:
            watch.cancel()
            reader.close()
            raise
        watch.cancel()
        reader.close()
        return response

    return [
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
    ]


async def _whole(form: ChunkForm, opened: list[Stream], reader: MergedReader) -> Response:
    """The answer in one piece. Raises the problem for which there is none."""
    headers = {"X-Stream-ID": opened[0].id}
    while not reader.is_done:
        await news(reader)
        for _, event in reader.take():
            if not isinstance(event, Delta) and (problem := problem_of(event)):
                problem.headers |= headers
                raise problem
    if reader.is_closed:  # there is nobody to answer
        return Response(status_code=499)
    return JSONResponse(form.whole(opened), headers=headers)


def _check_model(name: str | None, served_name: str) -> None:
    """Raises Problem for any but the one model. A request that names none means that one."""
    if name is not None and name != served_name:
        raise Problem(
            "model_not_found", "There is no such model here; GET /v1/models says which there is."
        )


def _is_resumable(
    http: HttpRequest, asked: ChatRequest | CompletionRequest, num_choices: int
) -> bool:
    """Whether the client asks for a stream that it can read on. Raises Problem."""
    given = http.headers.getlist(RESUMABLE)
    if not given or given == ["false"]:
        return False
    if given != ["true"]:
        raise Problem("invalid_value", "X-Penstock-Resumable is true or false.")
    if not asked.stream:
        raise _invalid("stream", "Only what is streamed can be resumable.")
    if num_choices > 1:
        raise _invalid("n" if asked.num_choices > 1 else "prompt", "Only one choice is resumable.")
    return True


def _timeout_of(http: HttpRequest) -> float | None:
    """What the client gives its request, in seconds. Raises Problem."""
    given = http.headers.getlist(TIMEOUT)
    if not given:
        return None
    digits = given[0]
    is_number = len(given) == 1 and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", digits, re.ASCII)
    if not is_number or not 0 < float(digits) <= MAX_TIMEOUT_S:
        raise Problem(
            "invalid_value", f"X-Penstock-Timeout is a number of seconds up to {MAX_TIMEOUT_S}."
        )
    return float(digits)


def _invalid(field: str, message: str) -> InvalidFields:
    return InvalidFields([FieldError(field, "invalid_value", f"{field}: {message}")])
