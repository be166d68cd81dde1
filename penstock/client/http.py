"""The HTTP that `Client` and `AsyncClient` share; nothing in this module waits for a socket.

In: a URL, the arguments of a call, a response, an error of httpx. Out: requests, values, and errors
of this package. This module does not know whether the caller is sync or async.
"""

import ipaddress
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from ..events import Timings, Usage
from .answer import (
    OnQueue,
    OnStatus,
    Options,
    StreamedAnswer,
    check_content_type,
    decode_json,
    refusal,
    request_body,
)
from .errors import (
    CutStreamError,
    PenstockError,
    RefusedError,
    ServerUnreachableError,
    UnexpectedAnswerError,
)
from .resume import Backoff, Reading, Reconnect, ResumePolicy, retry_after_s
from .retry import Retries

T = TypeVar("T")
AnyClient = httpx.Client | httpx.AsyncClient

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 600.0
MAX_CONNECT_S = 10.0
MAX_SILENCE_S = 45.0
"""Seconds without a byte that end a connection: a resumable stream has a heartbeat every 15 s."""
QUICK_CANCEL_S = 2.0
"""Seconds to wait for the cancellation of a stream that the caller leaves."""

ENDED = "the connection ended before the answer did"

OnCut = Callable[[str], object]
OnResume = Callable[[], object]


class ConnectionOptions(TypedDict):
    """The arguments of `httpx.Client` and `httpx.AsyncClient`."""

    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    limits: httpx.Limits
    trust_env: bool


def connection_options(url: str, api_key: str | None, timeout: float | None) -> ConnectionOptions:
    """Return the options for a server. Raises ValueError if `url` is not the URL of a server."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"not a URL: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError("the URL must be like http://127.0.0.1:8000")
    headers = {"Accept": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    connect = MAX_CONNECT_S if timeout is None else min(timeout, MAX_CONNECT_S)
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=connect),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
        # Proxies from the environment apply to other machines only.
        "trust_env": not _is_loopback(address.host),
    }


# A proxy that compresses would hold events back until it has a whole block.
EVENTS = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}


def generate_request(
    http: AnyClient,
    prompt: str | None,
    options: Options,
    *,
    stream: bool,
    resumable: bool = False,
    queue_events: bool = False,
    status_events: bool = False,
) -> httpx.Request:
    """Return the request for an answer, streamed or whole."""
    headers = {"Content-Type": "application/json", **(EVENTS if stream else {})}
    content = request_body(
        prompt,
        options,
        stream=stream,
        resumable=resumable,
        queue_events=queue_events,
        status_events=status_events,
    )
    return http.build_request("POST", "/generate", content=content, headers=headers)


def resume_request(
    http: AnyClient, stream_id: str, after: int | None, *, status_events: bool = False
) -> httpx.Request:
    """Return the request for the events of a stream after event `after`, or for all events."""
    headers = EVENTS if after is None else {**EVENTS, "Last-Event-ID": str(after)}
    params = {"status_events": "true"} if status_events else None
    return http.build_request("GET", _path(stream_id), params=params, headers=headers)


def reconnect_request(http: AnyClient, stream_id: str, step: Reconnect) -> httpx.Request:
    """Return the request that resumes a cut stream, with the time limit of this attempt."""
    request = resume_request(http, stream_id, step.after, status_events=step.status_events)
    for phase, limit_s in request.extensions["timeout"].items():
        request.extensions["timeout"][phase] = min(limit_s or step.timeout_s, step.timeout_s)
    return request


def expect_heartbeats(http: AnyClient, request: httpx.Request) -> None:
    """Limit the silence in a response whose head has arrived. (httpx reads the limit per read.)"""
    request.extensions["timeout"]["read"] = min(http.timeout.read or MAX_SILENCE_S, MAX_SILENCE_S)


def cancel_request(http: AnyClient, stream_id: str) -> httpx.Request:
    """Return the request that cancels a stream."""
    return http.build_request("DELETE", _path(stream_id))


def quick_cancel_request(http: AnyClient, stream_id: str) -> httpx.Request:
    """Return the request that cancels a stream, with a short time limit."""
    return http.build_request("DELETE", _path(stream_id), timeout=QUICK_CANCEL_S)


def _path(stream_id: str) -> str:
    return f"/streams/{quote(stream_id, safe='')}"


def check_cancelled(response: httpx.Response) -> None:
    """Raise RefusedError if the server refused to cancel. A stream that it lacks has ended."""
    if not response.is_success and response.status_code != httpx.codes.NOT_FOUND:
        _refuse(response)


def decoded(response: httpx.Response, kind: type[T]) -> T:
    """Return the value of a whole response. Raises RefusedError or UnexpectedAnswerError."""
    if response.status_code != httpx.codes.OK:
        _refuse(response)
    return decode_json(_content_type(response), response.content, kind)


def is_refused(response: httpx.Response) -> bool:
    """Return whether the server refused the request; the response's body then says why."""
    return response.status_code != httpx.codes.OK


def _refuse(response: httpx.Response) -> NoReturn:
    raise _refusal(response)


def _refusal(response: httpx.Response) -> RefusedError:
    retry_after = response.headers.get("retry-after")
    return refusal(
        response.status_code,
        response.reason_phrase,
        response.content,
        retry_after=None if retry_after is None else retry_after_s(retry_after, time.time()),
        headers=response.headers,
    )


def _content_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", ""))


def resume_policy(resume_timeout: float, backoff: Backoff) -> ResumePolicy:
    """Return the policy of a client. Raises ValueError for an invalid time."""
    if not resume_timeout >= 0:
        raise ValueError("resume_timeout must be a number of seconds, 0 or more")
    return ResumePolicy(resume_timeout, backoff)


def retries_of(number: int, backoff: Backoff) -> Retries:
    """Return how often a client sends a request again. Raises ValueError for an invalid number."""
    if number < 0:
        raise ValueError("retries must be a number, 0 or more")
    return Retries(number, backoff)


def own_reading(
    policy: ResumePolicy | None,
    on_cut: OnCut | None,
    on_resume: OnResume | None,
    on_queue: OnQueue | None = None,
    on_status: OnStatus | None = None,
) -> Reading:
    """Return the reading of a stream that this client opens. Without a policy it is not resumed."""
    answer = StreamedAnswer(is_resumable=policy is not None, on_queue=on_queue, on_status=on_status)
    return Reading(answer, policy, on_cut=on_cut, on_resume=on_resume)


def shared_reading(
    policy: ResumePolicy,
    stream_id: str,
    after: int | None,
    on_cut: OnCut | None,
    on_resume: OnResume | None,
    on_status: OnStatus | None,
) -> Reading:
    """Return the reading of a stream that another client opened.

    Raises ValueError for an empty `stream_id` or a negative `after`.
    """
    if not stream_id:
        raise ValueError("stream_id must not be empty")
    if after is not None and after < 0:
        raise ValueError("after must be the id of an event (0 or more), or None for all events")
    answer = StreamedAnswer(is_resumable=True, after=after, on_status=on_status)
    reading = Reading(answer, policy, is_own=False, on_cut=on_cut, on_resume=on_resume)
    reading.id = stream_id
    return reading


class BaseStream:
    """The parts of a stream that need no socket: its properties and its responses' heads."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._answer = reading.answer
        self._is_entered = False
        self._is_closed = False

    @property
    def id(self) -> str | None:
        """The server's id of this stream; None before the stream begins.

        `Client.resume` and `GET /streams/{id}` take this id.
        """
        return self._reading.id

    @property
    def text(self) -> str:
        """The text of the answer that you have read so far."""
        return self._answer.text

    @property
    def last_event_id(self) -> int | None:
        """The id of the last event that you have read; None before the first event.

        Give it to `Client.resume` as `after` to continue after this event.
        """
        return self._answer.last_taken

    @property
    def num_resumes(self) -> int:
        """The number of times that the stream was cut and resumed over a new connection."""
        return self._reading.num_resumes

    @property
    def usage(self) -> Usage | None:
        """The number of tokens of the prompt and of the answer, as the engine counted them.

        None before the end of the stream.
        """
        return self._answer.usage

    @property
    def timings(self) -> Timings | None:
        """The times of the request by the server's clock, in seconds; None before the end."""
        return self._answer.timings

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended: "stop", "length", "cancelled", "deadline" or "error".

        None before the end of the stream.
        """
        return self._answer.finish_reason

    def _begin(self, response: httpx.Response) -> None:
        """Accept the first response. Raises RefusedError or UnexpectedAnswerError."""
        if response.status_code == httpx.codes.NO_CONTENT and response.request.method == "GET":
            self._answer.end_as_known()
            return
        if response.status_code != httpx.codes.OK:
            _refuse(response)
        check_content_type(_content_type(response), "text/event-stream")
        if self._reading.id is None:
            self._reading.id = response.headers.get("x-stream-id")

    def _continue(self, response: httpx.Response) -> None:
        """Accept the response to an attempt to resume the stream."""
        if response.status_code != httpx.codes.OK:
            self._reading.refused(_refusal(response), response.headers.get("retry-after"))
            return
        try:
            check_content_type(_content_type(response), "text/event-stream")
        except UnexpectedAnswerError as error:
            self._reading.refused(error)
        else:
            self._reading.resumed()

    def _check_open(self) -> None:
        if self._is_closed and not self._answer.is_over:
            raise PenstockError("this stream was closed before its end")


@contextmanager
def translated_errors(http: AnyClient) -> Iterator[None]:
    """Turn the errors of httpx into errors of this package."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServerUnreachableError(reason_of(http, error)) from error
    except httpx.RequestError as error:
        raise CutStreamError(reason_of(http, error)) from error


def reason_of(http: AnyClient, error: httpx.RequestError) -> str:
    """Return a sentence that says why a connection failed."""
    url = str(http.base_url).rstrip("/")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        if "SSL" in str(error) or isinstance(error.__cause__, ssl.SSLError):
            return f"cannot make a secure connection to {url}: {error}"
        return f"no server at {url}: start one with `penstock serve`"
    if isinstance(error, httpx.ReadTimeout):
        silence_s = error.request.extensions["timeout"]["read"]
        return f"nothing came from {url} for {silence_s:g} seconds"
    return f"the connection to {url} ended before the answer did"


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
