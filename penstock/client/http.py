"""What `Client` and `AsyncClient` share of HTTP: nothing here waits for a socket.

In: a URL, a request's body, a response, an error of httpx. Out: settings, requests, values and
errors of ours. Not known here: whether the caller is sync or async.
"""

import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from penstock.client.answer import Answer, Options, body, check_content_type, refusal, whole
from penstock.client.errors import CutStreamError, PenstockError, ServerUnreachableError
from penstock.events import Timings, Usage

T = TypeVar("T")
AnyClient = httpx.Client | httpx.AsyncClient

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 600.0
MAX_CONNECT_S = 10.0


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


def generation(
    http: AnyClient, prompt: str | None, options: Options, stream: bool
) -> httpx.Request:
    """The request for an answer, streamed or whole."""
    headers = {"Content-Type": "application/json"}
    if stream:
        headers["Accept"] = "text/event-stream"
        # Compressed, a proxy would keep events back until it has a block of them.
        headers["Accept-Encoding"] = "identity"
    content = body(prompt, options, stream=stream)
    return http.build_request("POST", "/generate", content=content, headers=headers)


def cancellation(http: AnyClient, stream_id: str) -> httpx.Request:
    """The request that ends a stream from outside."""
    return http.build_request("DELETE", f"/streams/{quote(stream_id, safe='')}")


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
    raise refusal(response.status_code, response.reason_phrase, response.content)


def _content_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", ""))


class AnswerSoFar:
    """What a stream shows of its answer, and how it begins, goes on and ends."""

    def __init__(self) -> None:
        self.id: str | None = None
        """The server's name for this stream, known once it has begun."""
        self._answer = Answer()
        self._is_entered = False
        self._is_closed = False

    @property
    def text(self) -> str:
        """What was read of the answer so far."""
        return self._answer.text

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
        if response.status_code != httpx.codes.OK:
            _refuse(response)
        check_content_type(_content_type(response), "text/event-stream")
        self.id = response.headers.get("x-stream-id")

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
        return f"nothing came from {url} for {http.timeout.read:g} seconds"
    return f"the connection to {url} ended before the answer did"


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
