"""The native API: what the notebook's clients speak, and a little more.

In: HTTP requests. Out: streams opened and read. Not known here: engines; what frames look like.
"""

import asyncio
import random
from typing import Annotated, Any, Literal, Self, cast

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.native.frames import Form, NativeForm, NativeFrames, ending
from penstock.errors import Problem
from penstock.events import Finish, TerminalEvent
from penstock.request import MAX_TIMEOUT_S, Message, Request, Sampling
from penstock.stream.reader import Reader
from penstock.stream.registry import Streams, new_stream_id
from penstock.stream.stream import Stream
from penstock.web.access import access_of
from penstock.web.auth import owner_of
from penstock.web.body import BodyReader
from penstock.web.delivery import StreamResponse, queue_event, watch_client
from penstock.web.liveness import Liveness
from penstock.web.problems import invalid_fields, problem_of, problem_response

MAX_MESSAGES = 1024
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=StopString
        | Annotated[list[StopString], Field(max_length=MAX_STOPS)],
    ),
]

MAX_EVENT_ID_DIGITS = 15
# When an EventSource connects again, in milliseconds: not all of them at once.
RETRY_MS = (500, 1500)


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(BaseModel):
    """The body of `POST /generate`: a `prompt` or `messages`, and how to go on from there."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | None = Field(default=None, description="Text to continue.")
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)] | None = Field(
        default=None,
        description="A conversation to answer, instead of `prompt`; rendered with the model's own "
        "chat template.",
    )
    max_tokens: int = Field(default=100, ge=1, le=1024, description="Longest answer, in tokens.")
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="0 always takes the likeliest token."
    )
    top_p: float = Field(
        default=0.95, ge=0, le=1, description="Sample from the likeliest tokens that make up this."
    )
    top_k: int = Field(
        default=40, ge=0, le=100_000, description="Sample from this many likeliest tokens; 0: all."
    )
    seed: int | None = Field(
        default=None, ge=0, le=2**63 - 1, description="The same seed samples the same tokens."
    )
    stop: StopStrings | None = Field(
        default=None, description="The answer ends before the first of these strings."
    )
    stream: bool = Field(default=True, description="Server-Sent Events, or one JSON object.")
    resumable: bool = Field(
        default=False,
        description="The stream goes on when its connection is cut; GET /streams/{id} reads on.",
    )
    timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] | None = Field(
        default=None,
        description="Seconds, waiting included, after which the answer ends as it is then, with "
        "the finish reason deadline.",
    )
    queue_events: bool = Field(
        default=False,
        description="While it waits in line, tell the place by events named queue, rather than by "
        "comments.",
    )

    @model_validator(mode="after")
    def _prompt_or_messages(self) -> Self:
        if self.prompt is None and self.messages is None:
            raise PydanticCustomError("missing", "Give a prompt, or messages.")
        if self.prompt is not None and self.messages is not None:
            raise PydanticCustomError("value_error", "Give either a prompt or messages, not both.")
        if self.resumable and not self.stream:
            raise PydanticCustomError("value_error", "Only what is streamed can be resumable.")
        if self.queue_events and not self.stream:
            raise PydanticCustomError("value_error", "Only what is streamed has events.")
        return self

    def to_request(self) -> Request:
        """The same in the words of the system, with a stream id of its own."""
        messages = None
        if self.messages is not None:
            messages = tuple(Message(turn.role, turn.content) for turn in self.messages)
        return Request(
            id=new_stream_id(),
            max_tokens=self.max_tokens,
            prompt=self.prompt,
            messages=messages,
            sampling=Sampling(self.temperature, self.top_p, self.top_k, self.seed),
            stop=tuple(self.stop or ()),
        )


def parse_generate(body: dict[str, Any]) -> GenerateRequest:
    """The body's fields. Raises InvalidFields."""
    try:
        return GenerateRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_fields(
            error.errors(include_input=False, include_url=False, include_context=False)
        ) from None


def native_routes(streams: Streams, liveness: Liveness, bodies: BodyReader) -> list[Route]:
    """The routes `/generate` and `/streams/{id}`."""

    async def generate(http: HttpRequest) -> Response:
        """Generate text, streamed or whole."""
        owner = owner_of(http.scope)
        streams.check(owner)
        asked = parse_generate(await bodies.read_object(http))
        stream = streams.open(
            asked.to_request(),
            resumable=asked.resumable,
            opened_as=NativeForm(),
            owner=owner,
            timeout=asked.timeout,
        )
        access_of(http.scope).carries(stream)
        reader = Reader(stream)
        watch = watch_client(reader, http.receive)
        try:
            if problem := await asyncio.shield(stream.was_accepted):
                raise problem
            if asked.stream:
                frames = NativeFrames(with_ids=asked.resumable)
                tell = queue_event if asked.queue_events else None
                return StreamResponse(reader, frames, watch, liveness, tell=tell)
            response = whole_response(stream, await stream.end())
        except BaseException:
            watch.cancel()
            reader.close()
            raise
        watch.cancel()
        reader.close()
        return response

    async def resume(http: HttpRequest) -> Response:
        """Read a resumable stream, or read on."""
        stream = streams.find(http.path_params["stream_id"], owner_of(http.scope))
        first = first_event_of(http)
        form = cast("Form", stream.opened_as)
        if first > form.num_events(stream):
            raise _bad_event_id("beyond the last event that there is")
        if stream.ended is not None and first == form.num_events(stream):
            return Response(status_code=204)  # an EventSource then stops connecting again
        access_of(http.scope).carries(stream, resumed=True)
        streams.meter.resumed("running" if stream.ended is None else "ended")
        reader, frames = form.read_on(stream, first)
        return StreamResponse(
            reader,
            frames,
            watch_client(reader, http.receive),
            liveness,
            preface=b"retry: %d\n" % random.randint(*RETRY_MS),  # noqa: S311 - no secret
            resumed=True,
        )

    async def cancel(http: HttpRequest) -> Response:
        """Cancel a stream, in any phase."""
        stream_id = http.path_params["stream_id"]
        reason = streams.cancel(stream_id, owner_of(http.scope))
        return JSONResponse({"id": stream_id, "finish_reason": reason})

    read = Route("/streams/{stream_id}", resume, methods=["GET"])
    read.methods = {"GET"}  # not HEAD, which Starlette adds: a reader that reads nothing
    return [
        Route("/generate", generate, methods=["POST"]),
        read,
        Route("/streams/{stream_id}", cancel, methods=["DELETE"]),
    ]


def first_event_of(http: HttpRequest) -> int:
    """The id of the first event that the client has not seen. Raises Problem.

    `Last-Event-ID` wins over `?after=`: an EventSource that connects again sends the header, and
    still has the query of its first time in its URL.
    """
    given = http.headers.getlist("last-event-id") or http.query_params.getlist("after")
    if not given:
        return 0
    if len(given) > 1:
        raise _bad_event_id("given twice")
    (event_id,) = given
    if not (event_id.isascii() and event_id.isdigit()) or len(event_id) > MAX_EVENT_ID_DIGITS:
        raise _bad_event_id("not the id of an event")
    return int(event_id) + 1


def _bad_event_id(what: str) -> Problem:
    return Problem(
        "bad_event_id",
        f"The last event's id (Last-Event-ID, or ?after=) is {what}. It is the number in the"
        " `id:` line of the last event that came.",
    )


def whole_response(stream: Stream, end: TerminalEvent) -> Response:
    """The answer in one piece, or the problem for which there is none."""
    headers = {"X-Stream-ID": stream.id}
    if problem := problem_of(end):
        problem.headers |= headers
        return problem_response(problem)
    assert isinstance(end, Finish)
    fields = ending(end)
    return JSONResponse(
        {
            "text": stream.log.text(),
            "usage": fields["usage"],
            "request_time": end.timings.total_time,
            "finish_reason": fields["finish_reason"],
            "timings": msgspec.to_builtins(end.timings),
        },
        headers=headers,
    )
