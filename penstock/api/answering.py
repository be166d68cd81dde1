"""The one way to answer a request, for every API.

Open the streams, wait until the engine has accepted or refused them, then send the answer streamed
or whole, and clean up whatever happens. `resume` sends the rest of a stream to a later reader. What
differs between APIs is in their dialects.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.dialect import Answer, Call, Dialect, Form
from penstock.api.tolerance import HEADER, NoteLog, Notes
from penstock.errors import Problem
from penstock.events import Failure, TerminalEvent
from penstock.request import Request
from penstock.stream.counting import PromptCount
from penstock.stream.quotas import Owner
from penstock.stream.reader import Reader
from penstock.stream.record import ChoiceGroup, StreamRecord
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream
from penstock.web.access import CLIENT_CLOSED_REQUEST, access_of
from penstock.web.auth import owner_of
from penstock.web.body import BodyReader
from penstock.web.delivery import ConnectedReader, StreamResponse, queue_event
from penstock.web.liveness import Liveness

Parsed = TypeVar("Parsed")

MAX_EVENT_ID_DIGITS = 15
# When an EventSource should reconnect, in milliseconds: not all of them at once.
RETRY_MS = (500, 1500)
LIMIT_HEADER = "X-Penstock-Max-Tokens"


class Answering:
    """Answers requests over `streams`.

    With `strict`, a request is refused if a field is unknown or has no effect.
    """

    def __init__(
        self, streams: Streams, liveness: Liveness, bodies: BodyReader, *, strict: bool = False
    ) -> None:
        self.streams = streams
        self._strict = strict
        self._ignored = NoteLog()
        self._liveness = liveness
        self._bodies = bodies
        self._forms: dict[str, type[Form]] = {}
        self.fields: dict[str, type[BaseModel]] = {}
        """The model of the request's body for each path."""

    def route(self, path: str, dialect: Dialect) -> Route:
        """Return the route at which this dialect is spoken; its streams can be resumed."""
        self._forms[dialect.form.dialect] = dialect.form
        self.fields[path] = dialect.fields

        async def endpoint(http: HttpRequest) -> Response:
            return await self.answer(http, dialect)

        endpoint.__doc__ = dialect.summary
        return Route(path, endpoint, methods=["POST"], name=dialect.operation)

    async def answer(self, http: HttpRequest, dialect: Dialect) -> Response:
        """Answer a request for a generation. Raises Problem."""
        owner = owner_of(http.scope)
        self.streams.check(owner)
        notes = Notes(strict=self._strict)
        call = await self._bodies.read(http, owner, lambda body: dialect.parse(body, http, notes))
        if isinstance(call, Answer):
            return JSONResponse(call.content, headers=self._logged(notes, owner))
        opened = self._open(call, owner)
        access_of(http.scope).carries(opened, call.num_per_prompt)
        if call.on_opened is not None:
            call.on_opened(opened)
        connected = ConnectedReader(Reader(*opened), access_of(http.scope).peer)
        is_streaming = False
        try:
            for stream in opened:
                if problem := await asyncio.shield(stream.was_accepted):
                    raise problem
            if call.at_once:
                return JSONResponse(call.form.so_far(opened), headers=self._named(notes, opened))
            if not call.streamed:
                return await self._whole(call, opened, connected, notes)
            is_streaming = True
        finally:
            if not is_streaming:  # otherwise the response closes it
                connected.close()
        return StreamResponse(
            connected,
            call.form.framer(opened, with_ids=call.resumable),
            self._liveness,
            headers=self._headers(notes, call, opened),
            tell_place=queue_event if call.queue_events else None,
        )

    async def read(
        self, http: HttpRequest, parse: Callable[[dict[str, Any], Notes], Parsed]
    ) -> tuple[Parsed, dict[str, str]]:
        """Read a request that needs no engine. Returns it and the response's headers.

        Raises Problem.
        """
        owner = owner_of(http.scope)
        notes = Notes(strict=self._strict)
        parsed = await self._bodies.read(http, owner, lambda body: parse(body, notes))
        return parsed, self._logged(notes, owner)

    async def count(
        self, http: HttpRequest, read: Callable[[dict[str, Any], Notes], Request]
    ) -> tuple[PromptCount, dict[str, str]]:
        """Have the engine read a prompt. Returns what it found and the response's headers.

        `read` turns the body into a request. Raises Problem.
        """
        owner = owner_of(http.scope)
        self.streams.check(owner, num_streams=0)
        notes = Notes(strict=self._strict)
        request = await self._bodies.read(http, owner, lambda body: read(body, notes))
        counted = await self.streams.count_tokens(request, owner)
        notes.changed(counted.notes)
        return counted, self._logged(notes, owner)

    async def resume(self, http: HttpRequest, stream_id: str, first: int | None = None) -> Response:
        """Send the events of a resumable stream from number `first` on.

        By default that is the one after the last event that the client has seen. Raises Problem.
        """
        stream = await self.streams.find_anywhere(stream_id, owner_of(http.scope))
        saved = stream.record.form
        form = self._forms[saved.dialect].load(saved)
        if first is None:
            first = first_event_of(http)
        num_events = form.num_events(stream)
        if first > num_events:
            raise _bad_event_id("is beyond the last event of this stream")
        if stream.ended is not None and first == num_events:
            return Response(status_code=204)  # this stops an EventSource from reconnecting
        access_of(http.scope).resumes(stream)
        self.streams.meter.resumed("running" if stream.ended is None else "ended")
        cursor, framer = form.resume(stream, first)
        return StreamResponse(
            ConnectedReader(Reader(stream, cursor=cursor), access_of(http.scope).peer),
            framer,
            self._liveness,
            preface=b"retry: %d\n" % random.randint(*RETRY_MS),  # noqa: S311 - no secret
            resumed=True,
        )

    def _open(self, call: Call, owner: Owner) -> list[Stream]:
        """Open a stream for each choice: all of them or none. Raises Problem."""
        size = len(call.requests)
        first_id = call.requests[0].id
        form = call.form.save()
        records = []
        for number, request in enumerate(call.requests):
            is_first = number % call.num_per_prompt == 0
            choices = ChoiceGroup(first_id, number, size, is_first) if size > 1 else None
            records.append(
                StreamRecord(
                    request,
                    owner,
                    call.resumable,
                    call.timeout,
                    form,
                    choices,
                    has_limit=call.max_tokens is not None,
                )
            )
        return self.streams.open_all(records)

    async def _whole(
        self,
        call: Call,
        opened: Sequence[Stream],
        connected: ConnectedReader,
        notes: Notes,
    ) -> Response:
        """Return the whole answer. Raises Problem if there is none."""
        headers = {"X-Stream-ID": opened[0].id}
        endings: Iterable[Awaitable[TerminalEvent]] = [stream.end() for stream in opened]
        for ending in asyncio.as_completed(endings) if len(opened) > 1 else endings:
            end = await ending
            if problem := problem_of(end):
                problem.headers |= headers | self._named(notes, opened)
                raise problem
            if not isinstance(end, Failure) and end.reason == "cancelled":
                for stream in opened:
                    stream.cancel()
        if connected.reader.is_closed:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        headers |= self._headers(notes, call, opened)
        return JSONResponse(call.form.whole(opened), headers=headers)

    def _headers(self, notes: Notes, call: Call, opened: Sequence[Stream]) -> dict[str, str]:
        """Return the headers of an answer that say what differs from the request."""
        headers = {**call.headers, **self._named(notes, opened), **self._cut_limit(call, opened)}
        owner = opened[0].record.owner
        if owner.limits.tokens_per_minute is not None:
            headers |= self.streams.token_headers(owner)
        return headers

    def _named(self, notes: Notes, opened: Sequence[Stream]) -> dict[str, str]:
        """Return the header with the names of ignored fields and of what the engine changed."""
        for stream in opened:
            notes.changed(stream.notes)
        return self._logged(notes, opened[0].record.owner)

    def _logged(self, notes: Notes, owner: Owner) -> dict[str, str]:
        """Log the names of ignored fields; return the header with them."""
        self._ignored.add(owner, notes)
        return {HEADER: notes.header()} if notes.names else {}

    def _cut_limit(self, call: Call, opened: Sequence[Stream]) -> dict[str, str]:
        """Return the header with the token limit that holds, if the client's does not fit.

        The context or the key's tokens per minute can lower it. The room in the context is unknown
        while the stream waits in the queue. Then the finish reason `length` says that the context
        was full before the limit.
        """
        asked = call.max_tokens
        granted = wanted = call.requests[0].max_tokens
        for stream in opened:
            if stream.record.request.max_tokens < granted:
                granted = stream.record.request.max_tokens
        if granted < wanted:
            asked = asked or wanted
        context = self.streams.context_length
        if asked is None or context is None:
            return {}
        known = [stream.usage for stream in opened if stream.phase != "queued"]
        room = min((context - usage.prompt_tokens for usage in known), default=granted)
        limit = min(room, granted)
        return {LIMIT_HEADER: str(limit)} if limit < asked else {}


def problem_of(end: TerminalEvent) -> Problem | None:
    """Return the problem for which a stream that ended so has no whole answer, if there is one."""
    if isinstance(end, Failure):
        return Problem(end.code, end.message, retry_safe=end.retry_safe)
    if end.reason == "deadline" and not end.usage.completion_tokens:
        return Problem(
            "deadline_passed",
            "The request's time was up before it started. Send it again later, or allow it more"
            " time.",
        )
    return None


def first_event_of(http: HttpRequest) -> int:
    """Return the id of the first event that the client has not seen. Raises Problem.

    `Last-Event-ID` wins over `?after=`: an EventSource that reconnects sends the header, and its
    URL still has the query of its first request.
    """
    given = http.headers.getlist("last-event-id") or http.query_params.getlist("after")
    if not given:
        return 0
    if len(given) > 1:
        raise _bad_event_id("is given twice")
    (event_id,) = given
    if not (event_id.isascii() and event_id.isdigit()) or len(event_id) > MAX_EVENT_ID_DIGITS:
        raise _bad_event_id("is not the id of an event")
    return int(event_id) + 1


def _bad_event_id(what: str) -> Problem:
    return Problem(
        "bad_event_id",
        f"The last event's id (Last-Event-ID, or ?after=) {what}. It is the number in the `id:`"
        " line of the last event that you received.",
    )
