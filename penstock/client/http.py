"""What `Client` and `AsyncClient` share of HTTP: nothing here waits for a socket.

In: a URL, a request's body, a response, an error of httpx. Out: settings, requests, values and
errors of ours. Not known here: whether the caller is sync or async.
"""

import ipaddress
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from penstock.client.answer import Answer, Options, body, check_content_type, refusal, whole
from penstock.client.errors import (
    CutStreamError,
    PenstockError,
    RefusedError,
    ServerUnreachableError,
    UnexpectedAnswerError,
)
from penstock.client.resume import Ask, Backoff, Patience, Reading
from penstock.events import Timings, Usage

T = TypeVar("T")
AnyClient = httpx.Client | httpx.AsyncClient

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 600.0
MAX_CONNECT_S = 10.0
MAX_SILENCE_S = 45.0
"""A stream that can be resumed sends a heartbeat every 15 seconds: after three it is cut."""
FAREWELL_S = 2.0

ENDED = "the connection ended before the answer did"

OnCut = Callable[[str], object]
OnResume = Callable[[], object]


class Settings(TypedDict):
    """What both clients of httpx are made with."""

    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    limits: httpx.Limits
    trust_env: bool


def settings(url: str, api_key: str | None, timeout: float | None) -> Settings:
    """Raises ValueError for what is not the URL of a server."""
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
        # A proxy from the environment is for other machines than this one.
        "trust_env": not _is_loopback(address.host),
    }


# Compressed, a proxy would keep events back until it has a block of them.
EVENTS = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}


def generation(
    http: AnyClient,
    prompt: str | None,
    options: Options,
    *,
    stream: bool,
    resumable: bool = False,
) -> httpx.Request:
    """The request for an answer, streamed or whole."""
    headers = {"Content-Type": "application/json", **(EVENTS if stream else {})}
    content = body(prompt, options, stream=stream, resumable=resumable)
    return http.build_request("POST", "/generate", content=content, headers=headers)


def resumption(http: AnyClient, stream_id: str, after: int | None) -> httpx.Request:
    """The request for a stream's events after this one, or for all of them."""
    headers = EVENTS if after is None else {**EVENTS, "Last-Event-ID": str(after)}
    return http.build_request("GET", _path(stream_id), headers=headers)


def attempt(http: AnyClient, stream_id: str, ask: Ask) -> httpx.Request:
    """The same on behalf of a stream that was cut: whoever does not answer soon is not there."""
    request = resumption(http, stream_id, ask.after)
    for phase, limit_s in request.extensions["timeout"].items():
        request.extensions["timeout"][phase] = min(limit_s or ask.timeout_s, ask.timeout_s)
    return request


def expect_heartbeats(http: AnyClient, request: httpx.Request) -> None:
    """From now on, the head being there, a long silence is a cut. (httpx reads this per phase.)"""
    request.extensions["timeout"]["read"] = min(http.timeout.read or MAX_SILENCE_S, MAX_SILENCE_S)


def cancellation(http: AnyClient, stream_id: str) -> httpx.Request:
    """The request that ends a stream from outside."""
    return http.build_request("DELETE", _path(stream_id))


def farewell(http: AnyClient, stream_id: str) -> httpx.Request:
    """The same from one who leaves, and does not wait for long."""
    return http.build_request("DELETE", _path(stream_id), timeout=FAREWELL_S)


def _path(stream_id: str) -> str:
    return f"/streams/{quote(stream_id, safe='')}"


def check_cancelled(response: httpx.Response) -> None:
    """Where the stream was not found it has ended, which is what was asked for."""
    if not response.is_success and response.status_code != httpx.codes.NOT_FOUND:
        _refuse(response)


def understood(response: httpx.Response, kind: type[T]) -> T:
    """The value a whole response holds. Raises RefusedError and UnexpectedAnswerError."""
    if response.status_code != httpx.codes.OK:
        _refuse(response)
    return whole(_content_type(response), response.content, kind)


def is_refused(response: httpx.Response) -> bool:
    """There will be no stream; the body says why."""
    return response.status_code != httpx.codes.OK


def _refuse(response: httpx.Response) -> NoReturn:
    raise _refusal(response)


def _refusal(response: httpx.Response) -> RefusedError:
    return refusal(response.status_code, response.reason_phrase, response.content)


def _content_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", ""))


def patience(resume_timeout: float, backoff: Backoff) -> Patience:
    """Raises ValueError for what is no time."""
    if not resume_timeout >= 0:
        raise ValueError("resume_timeout is a number of seconds, 0 or more")
    return Patience(resume_timeout, backoff)


def reading(
    patience: Patience | None,
    on_cut: OnCut | None,
    on_resume: OnResume | None,
) -> Reading:
    """What will be read of a stream of our own. Without patience a cut is its end."""
    answer = Answer(is_resumable=patience is not None)
    return Reading(answer, patience, on_cut=on_cut, on_resume=on_resume)


def reading_along(
    patience: Patience,
    stream_id: str,
    after: int | None,
    on_cut: OnCut | None,
    on_resume: OnResume | None,
) -> Reading:
    """What will be read of a stream that somebody else opened. Raises ValueError."""
    if not stream_id:
        raise ValueError("give the id of a stream")
    if after is not None and after < 0:
        raise ValueError("after is the number of an event: 0 or more, or None for all of them")
    answer = Answer(is_resumable=True, after=after)
    reading = Reading(answer, patience, is_own=False, on_cut=on_cut, on_resume=on_resume)
    reading.id = stream_id
    return reading


class AnswerSoFar:
    """What a stream shows of its answer, and how it begins, goes on and ends."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._answer = reading.answer
        self._is_entered = False
        self._is_closed = False

    @property
    def id(self) -> str | None:
        """The server's name for this stream, known once it has begun."""
        return self._reading.id

    @property
    def text(self) -> str:
        """What was read of the answer so far."""
        return self._answer.text

    @property
    def last_event_id(self) -> int | None:
        """The number of the event that was read last: `resume` goes on after it."""
        return self._answer.last_taken

    @property
    def num_resumes(self) -> int:
        """How often the connection was cut and the stream went on over another one."""
        return self._reading.num_resumes

    @property
    def usage(self) -> Usage | None:
        """Tokens as the engine counted them; None before the end."""
        return self._answer.usage

    @property
    def timings(self) -> Timings | None:
        """Where the time went, by the server's clock; None before the end."""
        return self._answer.timings

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: "stop", "length" or "cancelled"; None before the end."""
        return self._answer.finish_reason

    def _begin(self, response: httpx.Response) -> None:
        """The first response is here. Raises what it says against there being a stream."""
        if response.status_code == httpx.codes.NO_CONTENT and response.request.method == "GET":
            self._answer.end_as_known()
            return
        if response.status_code != httpx.codes.OK:
            _refuse(response)
        check_content_type(_content_type(response), "text/event-stream")
        if self._reading.id is None:
            self._reading.id = response.headers.get("x-stream-id")

    def _go_on(self, response: httpx.Response) -> None:
        """Another response is here, after a cut."""
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
def explained(http: AnyClient) -> Iterator[None]:
    """What httpx says of a connection, as an error of ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServerUnreachableError(why(http, error)) from error
    except httpx.RequestError as error:
        raise CutStreamError(why(http, error)) from error


def why(http: AnyClient, error: httpx.RequestError) -> str:
    """A sentence for what ended a connection."""
    url = str(http.base_url).rstrip("/")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        if "SSL" in str(error) or isinstance(error.__cause__, ssl.SSLError):
            return f"no secure connection to {url}: {error}"
        return f"no server at {url}: start one with `penstock serve`"
    if isinstance(error, httpx.ReadTimeout):
        silence_s = error.request.extensions["timeout"]["read"]
        return f"nothing came from {url} for {silence_s:g} seconds"
    return f"the connection to {url} ended before the answer did"


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
