"""An access: one HTTP request and its response, from the head to the end.

In: every request, before anything else has seen it. Out: `X-Request-ID` and `Server-Timing` on
every response; at its end one line in the log and what the metrics say of requests. Not known
here: what a route does. The route's part is to say which stream its response carries.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.errors import Problem
from penstock.events import Failure, Finish
from penstock.observe.meter import Meter
from penstock.request import Request
from penstock.stream.quotas import Owner
from penstock.stream.registry import ended_as
from penstock.stream.stream import Stream

log = logging.getLogger("penstock.request")

KEY = "penstock.access"
OWNER = "penstock.owner"
"""Where in a request's scope its owner stands, once that is known (see `auth`)."""
# What of a scope is told at the end: nothing else is needed once the routes are done with it.
_TOLD = frozenset({"method", "client", "route", OWNER})
# What an id of the client's may be, to be passed on: safe in a header, a log and a shell.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Twice what a body may be by default: what is somewhat too large is told so, too.
MAX_DISCARDED_BYTES = 8 * 1024 * 1024
DISCARD_TIMEOUT_S = 1.0
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_WORST_FIRST = ("error", "cancelled", "deadline", "length", "stop")
# Asked every few seconds by machines: where all is well, not worth a line each.
_PROBES = ("/health", "/metrics")


class RequestError(Exception):
    """Ends a response whose route raised what it should not have; without what that was."""


class Access:
    """What is known of one request. `id` is the client's own `X-Request-ID`, where well-formed."""

    __slots__ = (
        "_choices",
        "_keeps_prompt",
        "_num_per_prompt",
        "_resumed",
        "began",
        "has_begun_body",
        "id",
        "is_complete",
        "problem_code",
        "prompt",
        "rest",
        "send",
        "status",
        "stream",
    )

    def __init__(self, scope: Scope, send: Send, *, keeps_prompt: bool = False) -> None:
        self.send = send
        """The server's own: past all middleware, none of which does anything to a body."""
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_good = len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) is not None
        self.id = given[0].decode("ascii") if is_good else secrets.token_hex(16)
        self.began = time.monotonic()
        self.status = 0
        """The response's; 0 as long as there is none."""
        self.is_complete = False
        """The last piece of the response's body was sent."""
        self.has_begun_body = False
        """The request's body is being read, or was."""
        self.rest: Callable[[], Awaitable[bool]] | None = None
        """Sends what a route leaves to send when all middleware is done, and says whether that was
        the whole body."""
        self.problem_code = ""
        self.stream: Stream | None = None
        self._choices: tuple[Stream, ...] = ()
        self._num_per_prompt = 1
        self._resumed = False
        self._keeps_prompt = keeps_prompt
        self.prompt = ""

    def carries(self, stream: Stream, *, resumed: bool = False) -> None:
        """The response is this stream's, or `resumed`: the rest of it, for a later reader."""
        self.stream = stream
        self._resumed = resumed
        if self._keeps_prompt and not resumed:
            self.prompt = _prompt_of(stream.request)

    def carries_choices(self, streams: Sequence[Stream], num_per_prompt: int) -> None:
        """The response is that of all of these, so many of them for each prompt."""
        self.carries(streams[0])
        self._choices, self._num_per_prompt = tuple(streams), num_per_prompt

    @property
    def is_refusal(self) -> bool:
        """The client was told of a problem, and no engine had taken its request."""
        if not self.problem_code:
            return False
        if self.stream is None or not self.stream.was_accepted.done():
            return True
        return self.stream.was_accepted.result() is not None

    @property
    def is_answered(self) -> bool:
        """The client was sent a whole answer, to the end that the engine gave it."""
        if self.stream is None or self._resumed or not self.is_complete or self.status != 200:
            return False
        end = self.stream.ended
        return isinstance(end, Finish) and end.reason in ("stop", "length")

    def begin_response(self, status: int) -> list[tuple[bytes, bytes]]:
        """The headers that every response has."""
        self.status = status
        return [
            (b"x-request-id", self.id.encode()),
            (b"server-timing", self._server_timing().encode()),
        ]

    def _server_timing(self) -> str:
        """Where the time went until now, when the head goes out."""
        waited = time.monotonic() - self.began
        end = self.stream.ended if self.stream is not None else None
        if self._resumed or self.problem_code:
            parts = [("total", waited)]
        elif end is not None:
            first = end.timings.time_to_first_token
            parts = [("queue", end.timings.queue_time)]
            if first is not None:
                parts.append(("prefill", first - end.timings.queue_time))
                parts.append(("decode", end.timings.total_time - first))
            parts.append(("total", waited))
        else:  # of a stream nothing is known yet but that the engine has taken it
            parts = [("total" if self.stream is None else "admission", waited)]
        return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in parts)

    def fields(self) -> dict[str, Any]:
        """What the log says of it, beside its route."""
        stream = self.stream
        fields: dict[str, Any] = {
            "request_id": self.id,
            "status": self.status,
            "duration_s": round(time.monotonic() - self.began, 6),
        }
        if self.prompt:
            fields["prompt"] = self.prompt
        if self.problem_code:
            fields["error_code"] = self.problem_code
        if stream is None:
            return fields
        fields["stream_id"] = stream.id
        fields["resumed"] = self._resumed
        fields["readers"] = stream.num_readers_ever
        return {**fields, **self._outcome(self._choices or (stream,))}

    def _outcome(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """What came of the choices together: all their tokens, each prompt's once; of their ends
        the worst; of the times that of the first text, and else the longest."""
        fields: dict[str, Any] = {"choices": len(streams)} if len(streams) > 1 else {}
        prompts = streams[:: self._num_per_prompt]
        fields["prompt_tokens"] = sum(stream.usage.prompt_tokens for stream in prompts)
        fields["completion_tokens"] = sum(stream.usage.completion_tokens for stream in streams)
        ends = [stream.ended for stream in streams if stream.ended is not None]
        if len(ends) < len(streams):
            fields["finish_reason"] = None  # resumable: it goes on
            return fields
        worst = min(ends, key=lambda end: _WORST_FIRST.index(ended_as(end)))
        fields["finish_reason"] = ended_as(worst)
        if any(stream.client_gone for stream in streams):
            fields["client_gone"] = True
        if isinstance(worst, Failure):
            fields["error_code"] = worst.code
        firsts = [end.timings.time_to_first_token for end in ends]
        fields["queue_s"] = max(end.timings.queue_time for end in ends)
        fields["ttft_s"] = min((each for each in firsts if each is not None), default=None)
        fields["total_s"] = max(end.timings.total_time for end in ends)
        return fields


class AccessMiddleware:
    """ASGI middleware, outside of all other: makes each request's `Access` and tells of it.

    `log_prompts`: put into the log what was asked, as well.
    """

    def __init__(self, app: ASGIApp, meter: Meter, *, log_prompts: bool = False) -> None:
        self._app = app
        self._meter = meter
        self._log_prompts = log_prompts
        self._num_open = 0
        self.idle = asyncio.Event()
        """Set while no request is being answered."""
        self.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            send = _without_body(send)
        access = scope[KEY] = Access(scope, send, keeps_prompt=self._log_prompts)
        self._num_open += 1
        self.idle.clear()

        # Not a coroutine of its own: that would cost every send something.
        def send_on(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                own = access.begin_response(message["status"])
                message["headers"] = [*message.get("headers", ()), *own]
            else:
                access.is_complete = not message.get("more_body", False)
            return send(message)

        try:
            await self._app(scope, receive, send_on)
            if access.rest is not None:
                _forget_what_served(scope)
                access.is_complete = await access.rest()
        except Exception as error:
            fields = {"request_id": access.id, "route": route_of(scope)}
            log.error("a request failed", exc_info=error, extra={"fields": fields})
            # What the error says may hold what the client sent, and others would print it.
            raise RequestError(f"request {access.id} failed; the line before says how") from None
        finally:
            self._num_open -= 1
            if not self._num_open:
                self.idle.set()
            self._tell(access, scope)

    def _tell(self, access: Access, scope: Scope) -> None:
        route = route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._meter.request_ended(route, method, access.status)
        if access.is_refusal:
            self._meter.refused(access.problem_code)
        if access.stream is not None and access.is_answered:
            self._meter.answered(time.monotonic() - access.stream.admitted_at)
        is_probe = route.startswith(_PROBES) and access.status == 200
        level = logging.DEBUG if is_probe else logging.INFO
        if log.isEnabledFor(level):
            client = scope.get("client") or ("",)
            fields = {"method": method, "route": route, "client": client[0], **access.fields()}
            owner: Owner | None = scope.get(OWNER)
            if owner is not None and owner.is_closed:
                fields["owner"] = owner.name
            log.log(level, "request ended", extra={"fields": fields})


def _without_body(send: Send) -> Send:
    """For HEAD: over HTTP/2 Granian would send a body that is given to it."""

    def send_head(message: Message) -> Awaitable[None]:
        return send({**message, "body": b""} if "body" in message else message)

    return send_head


def _forget_what_served(scope: Scope) -> None:
    """Let go of what the server and Starlette leave in a scope."""
    for name in scope.keys() - _TOLD:
        del scope[name]


class ProblemResponse(JSONResponse):
    """A problem as an answer, in whichever form. Its code goes into the log and the metrics."""

    def __init__(
        self, problem: Problem, body: dict[str, Any], status: int, media_type: str
    ) -> None:
        super().__init__(body, status, problem.headers, media_type)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = access_of(scope)
        access.problem_code = self._code
        if not access.has_begun_body:
            await _discard_body(scope, receive)
        await super().__call__(scope, receive, send)


async def _discard_body(scope: Scope, receive: Receive) -> None:
    """Read a body that nobody wants, if it is small. Else its client, which is still sending, may
    find its connection broken and never see the answer."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    is_small = length.isdigit() and 0 < int(length) <= MAX_DISCARDED_BYTES
    if not is_small or b"expect" in headers:  # that one waits to be told to send it
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()


def _prompt_of(request: Request) -> str:
    turns = [f"{message.role}: {message.content}" for message in request.messages or ()]
    return request.prompt or "\n".join(turns)


def access_of(scope: Scope) -> Access:
    """The access that this request belongs to."""
    access: Access = scope[KEY]
    return access


def route_of(scope: Scope) -> str:
    """The route as it stands in the code ("/streams/{stream_id}"), "none" where there is none:
    never what the client wrote."""
    return getattr(scope.get("route"), "path", "") or "none"
