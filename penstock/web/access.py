"""The access record of each HTTP request, from its head to the end of its response.

The middleware is outside everything else. It adds `X-Request-ID` and `Server-Timing` to every
response, and at the end writes one log line and updates the request metrics. It does not know what
a route does; the route says which stream its response carries.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.events import Failure, Finish, finish_reason_of
from penstock.observe.meter import Meter
from penstock.request import Request
from penstock.stream.quotas import Owner
from penstock.stream.stream import Stream
from penstock.web.http1.head import number_in
from penstock.web.peer import PEER, Peer
from penstock.web.proxies import TrustedProxies

log = logging.getLogger("penstock.request")

KEY = "penstock.access"
OWNER = "penstock.owner"
"""The key of a request's owner in its scope, once the owner is known (see `auth`)."""
# A client's request id is passed on only if it is safe in a header, a log and a shell.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Twice the default limit of a body: the client of a body that is somewhat too large sees why.
MAX_DISCARDED_BYTES = 8 * 1024 * 1024
DISCARD_TIMEOUT_S = 1.0
# nginx's status for a client that left before its response; nobody receives it.
CLIENT_CLOSED_REQUEST = 499
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_WORST_FIRST = ("error", "cancelled", "deadline", "length", "stop")
# Machines ask these every few seconds; a success is not worth a log line.
_PROBES = ("/health", "/metrics")


class RequestError(Exception):
    """Ends a response after an unexpected exception in its route, without that one's words."""


class Rest(Protocol):
    """A body that is sent after the application has returned (see `delivery.BodyWriter`)."""

    def begin(self, on_end: Callable[[bool], None]) -> None:
        """Send it; call `on_end` at the end, with True if all of it was sent."""


class Access:
    """The record of one request and its response.

    `id` is the client's own `X-Request-ID` if it is well-formed, otherwise a random one. `peer` is
    the client, for what goes past all middleware.
    """

    __slots__ = (
        "_choices",
        "_keeps_prompt",
        "_num_per_prompt",
        "_report",
        "_resumed",
        "began",
        "client",
        "has_begun_body",
        "id",
        "is_complete",
        "method",
        "owner",
        "peer",
        "problem_code",
        "prompt",
        "rest",
        "route",
        "status",
        "stream",
    )

    def __init__(self, scope: Scope, peer: Peer, *, keeps_prompt: bool = False) -> None:
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_good = len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) is not None
        self.id = given[0].decode("ascii") if is_good else secrets.token_hex(16)
        self.peer = peer
        self.began = time.monotonic()
        self.status = 0
        """The response's status; 0 before its head is sent."""
        self.is_complete = False
        """True once the last piece of the response's body was sent."""
        self.has_begun_body = False
        """True once someone began to read the request's body."""
        self.rest: Rest | None = None
        """Sends the body after all middleware is done."""
        self.problem_code = ""
        self.stream: Stream | None = None
        self._choices: tuple[Stream, ...] = ()
        self._num_per_prompt = 1
        self._resumed = False
        self._keeps_prompt = keeps_prompt
        self.prompt = ""
        self.method = ""
        self.route = ""
        self.client = ""
        self.owner: Owner | None = None
        self._report: Callable[[Access], None]

    def carries(self, streams: Sequence[Stream], num_per_prompt: int = 1) -> None:
        """Note that the response carries these new streams, `num_per_prompt` for each prompt."""
        self.stream = streams[0]
        self._choices, self._num_per_prompt = tuple(streams), num_per_prompt
        if self._keeps_prompt:
            self.prompt = _prompt_of(streams[0].record.request)

    def resumes(self, stream: Stream) -> None:
        """Note that the response is the rest of this stream, for a later reader."""
        self.stream, self._choices, self._resumed = stream, (stream,), True

    @property
    def is_refusal(self) -> bool:
        """Return True if the client got a problem before an engine accepted its request."""
        if not self.problem_code:
            return False
        if self.stream is None or not self.stream.was_accepted.done():
            return True
        return self.stream.was_accepted.result() is not None

    @property
    def is_answered(self) -> bool:
        """Return True if the client got a whole answer that ended with "stop" or "length"."""
        if self.stream is None or self._resumed or not self.is_complete or self.status != 200:
            return False
        end = self.stream.ended
        return isinstance(end, Finish) and end.reason in ("stop", "length")

    def outlive(self, scope: Scope, report: Callable[["Access"], None]) -> None:
        """Keep what the log line needs of the scope, which ends with the application."""
        self.method = scope["method"] if scope["method"] in _METHODS else "other"
        self.route = route_of(scope)
        self.client = (scope.get("client") or ("",))[0]
        self.owner = scope.get(OWNER)
        self._report = report

    def end(self, was_complete: bool) -> None:
        """Report the response that has just ended."""
        self.is_complete = was_complete
        self._report(self)

    def begin_response(self, status: int) -> list[tuple[bytes, bytes]]:
        """Note the status; return the headers that every response has."""
        self.status = status
        return [
            (b"x-request-id", self.id.encode()),
            (b"server-timing", self._server_timing().encode()),
            # A URL may hold the token of a stream: no page passes it on to another site.
            (b"referrer-policy", b"no-referrer"),
        ]

    def _server_timing(self) -> str:
        """Return where the time went until the response's head goes out."""
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
        else:  # a running stream: only its admission has been timed yet
            parts = [("total" if self.stream is None else "admission", waited)]
        return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in parts)

    def log_fields(self) -> dict[str, Any]:
        """Return what the log line says besides the route."""
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
        return {**fields, **_outcome(self._choices, self._num_per_prompt)}


def _outcome(streams: Sequence[Stream], num_per_prompt: int) -> dict[str, Any]:
    """Sum up the choices of one answer.

    Tokens are added up, each prompt's once. The finish reason is the worst one. The time to the
    first token is the shortest; the other times are the longest.
    """
    fields: dict[str, Any] = {"choices": len(streams)} if len(streams) > 1 else {}
    prompts = streams[::num_per_prompt]
    fields["prompt_tokens"] = sum(stream.usage.prompt_tokens for stream in prompts)
    fields["completion_tokens"] = sum(stream.usage.completion_tokens for stream in streams)
    ends = [stream.ended for stream in streams if stream.ended is not None]
    if len(ends) < len(streams):
        fields["finish_reason"] = None  # a resumable stream that still runs
        return fields
    worst = min(ends, key=lambda end: _WORST_FIRST.index(finish_reason_of(end)))
    fields["finish_reason"] = finish_reason_of(worst)
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
    """ASGI middleware: makes each request's `Access`, and logs and counts it at the end.

    `make_peer` makes the peer of a request whose HTTP server brings none. Behind `proxies`, the
    client is the one that they name. `log_prompts` puts prompts into the log.
    """

    def __init__(
        self,
        app: ASGIApp,
        meter: Meter,
        make_peer: Callable[[Receive, Send], Peer],
        *,
        proxies: TrustedProxies | None = None,
        log_prompts: bool = False,
    ) -> None:
        self._app = app
        self._meter = meter
        self._make_peer = make_peer
        self._proxies = proxies or TrustedProxies([])
        self._log_prompts = log_prompts
        self._num_open = 0
        self.idle = asyncio.Event()
        """Set while no request is being answered."""
        self.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._proxies:
            scope["client"] = self._proxies.client_of(scope)
        peer = scope.get(PEER)
        if peer is None:
            if scope["method"] == "HEAD":
                send = _without_body(send)
            peer = self._make_peer(receive, send)
        access = Access(scope, peer, keeps_prompt=self._log_prompts)
        scope[KEY] = access
        self._num_open += 1
        self.idle.clear()

        # Not a coroutine: that would add to the cost of every send.
        def send_on(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                own = access.begin_response(message["status"])
                message["headers"] = [*message.get("headers", ()), *own]
            else:
                access.is_complete = not message.get("more_body", False)
            return send(message)

        is_over = True
        try:
            await self._app(scope, receive, send_on)
            if access.rest is not None:
                is_over = False
                rest, access.rest = access.rest, None
                access.outlive(scope, self._report)
                if peer.holds_task:
                    scope.clear()
                    await _until_end(rest, access.end)
                else:
                    rest.begin(access.end)
        except asyncio.CancelledError:
            access.status = access.status or CLIENT_CLOSED_REQUEST
            raise
        except Exception as error:
            fields = {"request_id": access.id, "route": route_of(scope)}
            log.error("a request failed", exc_info=error, extra={"fields": fields})
            # The error's own words may contain the client's input, and the HTTP server prints them.
            raise RequestError(f"request {access.id} failed; the line before says how") from None
        finally:
            if is_over:
                access.outlive(scope, self._report)
                self._report(access)

    def _report(self, access: Access) -> None:
        self._num_open -= 1
        if not self._num_open:
            self.idle.set()
        route = access.route
        self._meter.request_ended(route, access.method, access.status)
        if access.is_refusal:
            self._meter.refused(access.problem_code)
        owner = access.owner
        if owner is not None and owner.key_id:
            usage = self._meter.usage_of(owner.label)
            usage.num_requests += 1
            usage.num_refused += access.is_refusal
        if access.stream is not None and access.is_answered:
            self._meter.answered(time.monotonic() - access.stream.admitted_at)
        is_probe = route.startswith(_PROBES) and access.status == 200
        level = logging.DEBUG if is_probe else logging.INFO
        if log.isEnabledFor(level):
            fields = {
                "method": access.method,
                "route": route,
                "client": access.client,
                **access.log_fields(),
            }
            if owner is not None and owner.is_closed:
                fields["owner"] = owner.name
                fields["key"] = owner.key_id
            record = logging.LogRecord(log.name, level, "", 0, "request ended", (), None)
            record.fields = fields  # without looking for the caller, which takes long
            log.handle(record)


async def _until_end(rest: Rest, on_end: Callable[[bool], None]) -> None:
    """Send the rest, and wait for its end."""
    ended = asyncio.get_running_loop().create_future()

    def end(was_complete: bool) -> None:
        on_end(was_complete)
        if not ended.done():
            ended.set_result(None)

    rest.begin(end)
    await ended


def _without_body(send: Send) -> Send:
    """Drop the bodies of responses to HEAD: over HTTP/2 Granian would send them."""

    def send_head(message: Message) -> Awaitable[None]:
        return send({**message, "body": b""} if "body" in message else message)

    return send_head


async def discard_body(scope: Scope, receive: Receive) -> None:
    """Read a small request body that nobody wants, unless someone has begun to read it.

    Otherwise a client that is still sending may find its connection broken and never see the
    response.
    """
    headers = dict(scope["headers"])
    is_small = 0 < number_in(headers.get(b"content-length", b"")) <= MAX_DISCARDED_BYTES
    # A client that sent `Expect` waits for permission to send the body.
    if access_of(scope).has_begun_body or not is_small or b"expect" in headers:
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
    """Return the access record of this request."""
    access: Access = scope[KEY]
    return access


def route_of(scope: Scope) -> str:
    """Return the route's path pattern ("/streams/{stream_id}"), or "none"."""
    return getattr(scope.get("route"), "path", "") or "none"
