"""The native API: `/generate`, and reading, canceling and lending of `/streams/{id}`."""

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.answering import Answering
from penstock.api.description import Api
from penstock.api.dialect import Call, Dialect
from penstock.api.native.errors import problem_details
from penstock.api.native.fields import OPTIONAL, GenerateRequest, parse_generate
from penstock.api.native.frames import DetailedForm, NativeForm
from penstock.api.native.lending import check_token, make_token
from penstock.api.serving import ServedModel
from penstock.api.tolerance import Notes
from penstock.web.auth import owner_of


class _Calls:
    """Turns the bodies of `/generate` into calls for a served model."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def generate(self, body: dict[str, Any], http: HttpRequest, notes: Notes) -> Call:
        """Return what the body asks for. Raises InvalidFields and Problem."""
        asked = parse_generate(body, notes)
        chosen, has_optional = "", not asked.__pydantic_fields_set__.isdisjoint(OPTIONAL)
        if asked.model is not None or has_optional:
            info = self._model.info(self._model.named(asked.model))
            chosen = info.id if asked.model is not None else ""
        if has_optional:
            request, form = asked.to_whole_request(chosen, info, notes), asked.form
        else:
            request, form = asked.to_request(chosen), NativeForm()
        return Call(
            requests=[request],
            form=form,
            streamed=asked.stream,
            resumable=asked.resumable,
            timeout=asked.timeout,
            max_tokens=asked.max_tokens,
            queue_events=asked.queue_events,
            status_events=asked.status_events,
        )


def _timeout(body: dict[str, Any], _: HttpRequest, is_strict: bool) -> float | None:
    return parse_generate(body, Notes(strict=is_strict)).timeout


def native_api(answering: Answering, model: ServedModel) -> Api:
    """Return the native API's routes."""
    generate = Dialect(
        "generate",
        "Generate text, streamed or whole.",
        GenerateRequest,
        _Calls(model).generate,
        (NativeForm, DetailedForm),
        _timeout,
    )

    async def resume(http: HttpRequest) -> Response:
        """Read a resumable stream from its beginning or after an event."""
        stream_id = http.path_params["stream_id"]
        await check_token(http.scope, stream_id, answering.streams)
        return await answering.resume(http, stream_id)

    async def lend(http: HttpRequest) -> Response:
        """Make a token that lets a program without a key read a stream."""
        stream_id = http.path_params["stream_id"]
        token = await make_token(http.scope, stream_id, answering.streams)
        made = {"token": token, "url": f"/streams/{stream_id}?token={token}"}
        return JSONResponse(made, headers={"Cache-Control": "no-store"})

    async def cancel(http: HttpRequest) -> Response:
        """Cancel a stream, in any phase, any number of times."""
        stream_id = http.path_params["stream_id"]
        reason = await answering.streams.cancel_anywhere(stream_id, owner_of(http.scope))
        return JSONResponse({"id": stream_id, "finish_reason": reason})

    read = Route("/streams/{stream_id}", resume, methods=["GET"], name="read_stream")
    read.methods = {"GET"}  # without HEAD, which Starlette adds: such a reader would read nothing
    routes = [
        answering.route("/generate", generate),
        read,
        Route("/streams/{stream_id}", cancel, methods=["DELETE"], name="cancel_stream"),
        Route("/streams/{stream_id}/token", lend, methods=["POST"], name="create_stream_token"),
    ]
    return Api(routes, problem_details, prefix="/", description="penstock.api.native.description")
