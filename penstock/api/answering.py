"""The one way to answer a request, for every API.

Open the streams, wait until the engine has accepted or refused them, then send the answer streamed
or whole, and clean up whatever happens. `resume` sends the rest of a stream to a later reader. What
differs between APIs is in their dialects.
"""

import asyncio
import dataclasses
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from penstock.api.dialect import Answer, Await, Call, Dialect, Form
from penstock.api.event_ids import bad_event_id, continued_by, first_event_of
from penstock.api.joining import REPLAYED, Joining, digest_of, name_of
from penstock.api.statuses import show_for, show_for_reader
from penstock.api.tolerance import HEADER, NoteLog, Notes
from penstock.errors import Problem
from penstock.events import Failure, TerminalEvent
from penstock.request import Request
from penstock.stream.counting import PromptCount
from penstock.stream.fleet import read_elsewhere
from penstock.stream.quotas import Owner
from penstock.stream.reader import Reader
from penstock.stream.record import ChoiceGroup, StreamRecord
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream
from penstock.stream.unread import LOADING, Unread
from penstock.web.access import CLIENT_CLOSED_REQUEST, access_of
from penstock.web.auth import owner_of
from penstock.web.body import BodyReader
from penstock.web.delivery import (
    ConnectedReader,
    Framer,
    StreamResponse,
    queue_event,
    stream_headers,
)
from penstock.web.liveness import Liveness
from penstock.web.statuses import Show, status_event
from penstock.web.stream_tokens import STREAM_TOKEN, new_secret

# When an EventSource should reconnect, in milliseconds: not all of them at once.
RETRY_MS = (500, 1500)
LIMIT_HEADER = "X-Penstock-Max-Tokens"
_UNAVAILABLE = 503
T = TypeVar("T")

Read = Callable[[dict[str, Any]], Call | Answer]
"""Turns a body into what it asks for. Raises Problem and Await (see `dialect.Parse`)."""


class _ClientLeftError(Exception):
    """The client has left: nobody receives a response."""


class Answering:
    """Answers requests over `streams`.

    With `strict`, a request is refused if a field is unknown or has no effect.
    """

    def __init__(
        self,
        streams: Streams,
        unread: Unread,
        liveness: Liveness,
        bodies: BodyReader,
        joining: Joining,
        *,
        strict: bool = False,
    ) -> None:
        self.streams = streams
        self._unread = unread
        self._joining = joining
        self._strict = strict
        self._ignored = NoteLog()
        self._liveness = liveness
        self._bodies = bodies
        self._forms: dict[str, type[Form]] = {}
        self.fields: dict[str, type[BaseModel]] = {}
        """The model of the request's body for each path."""

    def route(self, path: str, dialect: Dialect) -> Route:
        """Return the route at which this dialect is spoken; its streams can be resumed."""
        self._forms.update({form.dialect: form for form in dialect.forms})
        self.fields[path] = dialect.fields

        async def endpoint(http: HttpRequest) -> Response:
            try:
                return await self.answer(http, dialect)
            except _ClientLeftError:
                return Response(status_code=CLIENT_CLOSED_REQUEST)

        endpoint.__doc__ = dialect.summary
        return Route(path, endpoint, methods=["POST"], name=dialect.operation)

    async def answer(self, http: HttpRequest, dialect: Dialect) -> Response:
        """Answer a request for a generation. Raises Problem."""
        owner = owner_of(http.scope)
        if (last := continued_by(http)) is not None:
            await self._bodies.read(http, owner, lambda body: None)
            return await self.resume(http, last.stream_id, last.number + 1)
        show = show_for(http)
        if (name := name_of(http, owner, dialect.operation)) is not None:
            return await self._answer_once(http, dialect, owner, name, show)
        self.streams.check(owner)
        notes = Notes(strict=self._strict)
        call = await self._read(http, owner, dialect, lambda body: dialect.parse(body, http, notes))
        if isinstance(call, Answer):
            return JSONResponse(call.content, headers=self._logged(notes, owner))
        opened = self._begin(http, call, owner)
        connected = ConnectedReader(Reader(*opened), access_of(http.scope).peer)
        return await self._respond(call, opened, connected, notes, show)

    async def _read(
        self, http: HttpRequest, owner: Owner, dialect: Dialect, parse: Read
    ) -> Call | Answer:
        """Read the body and parse it. Raises Problem."""
        if self._unread.awaits_model:
            return await self._read_later(http, owner, dialect, parse)
        try:
            return await self._bodies.read(http, owner, parse)
        except Await as needed:
            return await _read_again(parse, needed)

    async def _read_later(
        self, http: HttpRequest, owner: Owner, dialect: Dialect, parse: Read
    ) -> Call | Answer:
        """Read the body, and parse it when the model is known. Raises Problem."""

        def keep(body: dict[str, Any]) -> tuple[float | None, str]:
            timeout = dialect.timeout(body, http, self._strict)
            return timeout, json.dumps(body, ensure_ascii=False)

        timeout, body = await self._bodies.read(http, owner, keep)
        waiting = self._unread.open(owner, body, timeout)
        connected = ConnectedReader(Reader(waiting), access_of(http.scope).peer)
        try:
            await self._unread.until_known(waiting)
            _check_waits(waiting)
            try:
                call = await self._bodies.read_text(owner, body, parse)
            except Await as needed:
                call = await _read_again(parse, needed)
            _check_waits(waiting)  # it may have ended meanwhile
        finally:
            self._unread.leave(waiting)
            connected.close()
        return call if isinstance(call, Answer) else self._late(call, waiting)

    def _late(self, call: Call, waiting: Stream) -> Call:
        """Return the call, whose time has run since `waiting` was opened."""

        def on_opened(opened: Sequence[Stream]) -> None:
            for stream in opened:
                stream.timer.set_age(waiting.age)
            if call.on_opened is not None:
                call.on_opened(opened)

        left = self.streams.seconds_left(waiting)
        return dataclasses.replace(call, timeout=left, on_opened=on_opened, has_place=True)

    async def _answer_once(
        self, http: HttpRequest, dialect: Dialect, owner: Owner, name: str, show: Show | None
    ) -> Response:
        """Answer a request whose key has this name: join its answer or begin it. Raises Problem."""
        if not await self._joining.is_taken(name):  # joining takes no place
            self.streams.check(owner, resumable=True)
        notes = Notes(strict=self._strict)
        digest = b""

        def parse(body: dict[str, Any]) -> Call | Answer:
            nonlocal digest
            digest = digest_of(body)
            return dialect.parse(body, http, notes)

        call = await self._read(http, owner, dialect, parse)
        if isinstance(call, Answer):
            return JSONResponse(call.content, headers=self._logged(notes, owner))
        if len(call.requests) > 1:
            raise Problem(
                "unsupported_field",
                "A request for several choices cannot have an Idempotency-Key: only an answer with"
                " one choice can be joined.",
            )
        stream_id = call.requests[0].id
        joined = await self._joining.join(name, digest, owner, stream_id)
        if joined is not None:
            return await self._join(http, call, joined, notes, show)
        try:
            opened = self._begin(http, call, owner, name)
        except Problem:
            await self._joining.release(name)
            raise
        connected = ConnectedReader(Reader(*opened), access_of(http.scope).peer)
        try:
            await self._joining.confirm(name, digest, stream_id)
        except Problem:
            opened[0].cancel()  # nobody could join it
            connected.close()
            raise
        return await self._respond(call, opened, connected, notes, show, has_key=True)

    async def _join(
        self, http: HttpRequest, call: Call, stream: Stream, notes: Notes, show: Show | None
    ) -> Response:
        """Answer with the stream of an earlier request, from its beginning. Raises Problem."""
        headers = {**call.headers, REPLAYED: "true"}
        call = dataclasses.replace(call, form=self._form_of(stream), headers=headers)
        self._note_resumed(http, stream)
        connected = ConnectedReader(Reader(stream), access_of(http.scope).peer)
        return await self._respond(call, [stream], connected, notes, show, resumed=True)

    async def _respond(
        self,
        call: Call,
        opened: Sequence[Stream],
        connected: ConnectedReader,
        notes: Notes,
        show: Show | None,
        *,
        resumed: bool = False,
        has_key: bool = False,
    ) -> Response:
        """Return the answer of these streams, streamed or whole. Raises Problem.

        `show` shows what happens to a stream; a call can ask for events instead.
        """
        if call.status_events:
            show = status_event
        is_streaming = False
        try:
            for stream in opened:
                if problem := await asyncio.shield(stream.was_accepted):
                    raise problem
            if call.until_ready is not None and not resumed:
                await call.until_ready()
            if call.at_once:
                headers = {**call.headers, **self._named(notes, opened)}
                return JSONResponse(call.form.so_far(opened), headers=headers)
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
            resumed=resumed,
            has_key=has_key,
            tell_place=queue_event if call.queue_events else None,
            show_status=show if len(opened) == 1 else None,
        )

    async def read(
        self, http: HttpRequest, parse: Callable[[dict[str, Any], Notes], T]
    ) -> tuple[T, dict[str, str]]:
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
        owner = owner_of(http.scope)
        show = show_for_reader(http)
        stream = await self.streams.find_anywhere(stream_id, owner)
        form = self._form_of(stream)
        if first is None:
            first = first_event_of(http, stream_id)
        num_events = form.num_events(stream)
        if first > num_events and self.streams.fleet is not None:
            stream = await self.streams.find_anywhere(stream_id, owner, afresh=True)
            num_events = form.num_events(stream)
        if first > num_events:
            raise self._beyond_the_end()
        if stream.torn_at is not None and first > form.num_before(stream, stream.torn_at):
            raise _history_torn()
        cursor, framer = form.resume(stream, first)
        if stream.ended is not None and first == num_events:
            return _nothing_left(http, stream, framer)
        self._note_resumed(http, stream)
        reader = Reader(stream, cursor=cursor)
        if STREAM_TOKEN in http.scope:
            self.streams.lend(reader, owner)
        return StreamResponse(
            ConnectedReader(reader, access_of(http.scope).peer),
            framer,
            self._liveness,
            preface=b"retry: %d\n" % random.randint(*RETRY_MS),  # noqa: S311 - no secret
            resumed=True,
            show_status=show,
        )

    def _form_of(self, stream: Stream) -> Form:
        """Return the form of a stream's answer. Raises Problem if this version does not know it."""
        saved = stream.record.form
        if saved.dialect not in self._forms:
            raise read_elsewhere()
        return self._forms[saved.dialect].load(saved)

    def _beyond_the_end(self) -> Problem:
        if self.streams.fleet is None:
            return bad_event_id("is beyond the last event of this stream")
        return _history_torn()

    def _note_resumed(self, http: HttpRequest, stream: Stream) -> None:
        """Note that a later reader reads a stream."""
        access_of(http.scope).resumes(stream)
        self.streams.meter.resumed("running" if stream.ended is None else "ended")

    def _begin(self, http: HttpRequest, call: Call, owner: Owner, name: str = "") -> list[Stream]:
        """Open a stream for each choice: all of them or none. Raises Problem.

        With a `name`, they can be resumed even if the call does not ask for it.
        """
        opened = self._open(call, owner, name)
        access_of(http.scope).carries(opened, call.num_per_prompt)
        if call.on_opened is not None:
            call.on_opened(opened)
        return opened

    def _open(self, call: Call, owner: Owner, name: str) -> list[Stream]:
        size = len(call.requests)
        first_id = call.requests[0].id
        form = call.form.save()
        resumable = call.resumable or bool(name)
        secret = new_secret() if resumable else b""
        records = []
        for number, request in enumerate(call.requests):
            is_first = number % call.num_per_prompt == 0
            choices = ChoiceGroup(first_id, number, size, is_first) if size > 1 else None
            records.append(
                StreamRecord(
                    request,
                    owner,
                    resumable,
                    call.timeout,
                    form,
                    choices,
                    has_limit=call.max_tokens is not None,
                    name=name,
                    token_secret=secret,
                )
            )
        return self.streams.open_all(records, has_place=call.has_place)

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
        context = self.streams.context_length(call.requests[0].model)
        if asked is None or context is None:
            return {}
        known = [stream.usage for stream in opened if stream.phase != "queued"]
        room = min((context - usage.prompt_tokens for usage in known), default=granted)
        limit = min(room, granted)
        return {LIMIT_HEADER: str(limit)} if limit < asked else {}


def _nothing_left(http: HttpRequest, stream: Stream, framer: Framer) -> Response:
    """Return the response for a client that has every event of a stream, which has ended.

    204 stops an EventSource from reconnecting. A client that sends its POST again expects a stream,
    and would try again for ever: it gets an empty one.
    """
    if http.method == "GET":
        return Response(status_code=204)
    headers = {name.decode(): value.decode() for name, value in stream_headers(framer)}
    return Response(headers={**headers, "X-Stream-ID": stream.id})


def _history_torn() -> Problem:
    """Return the problem of a client that may have seen events that a store has lost.

    The events that follow in the log may contradict the lost ones.
    """
    return Problem(
        "history_lost",
        "The store of the streams' logs may have lost events that you have seen, and the stream"
        " goes on with others. It is safe to send your request again from the beginning, without"
        " an event's id.",
    )


async def _read_again(parse: Read, needed: Await) -> Call | Answer:
    """Parse a body that needs something first. Raises Problem."""
    while True:
        await needed.fetch()
        try:
            return await asyncio.to_thread(parse, needed.body)
        except Await as more:
            needed = more


def _check_waits(waiting: Stream) -> None:
    """Raise Problem if a request's wait for the model has ended without the model."""
    end = waiting.ended
    if end is None:
        return
    if waiting.client_gone:
        raise _ClientLeftError
    problem = problem_of(end) or Problem("engine_loading", LOADING)
    if problem.status == _UNAVAILABLE:
        problem.headers["Retry-After"] = "1"
    raise problem


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
