"""An HTTP/1.1 client for many streams at once, with as little CPU per piece as Python allows.

In: requests as bytes. Out: for each request's receiver, the head and the pieces of the body, each
with the time at which it was read from the socket. Connections are kept open and reused. Not known
here: the content of a body.

Each piece goes from the event loop through httptools (C) to the receiver in one call and wakes no
task: the time that a client spends on a token adds to the latency that it measures
(docs/dependencies.md has the figures).
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from penstock import __version__

Clock = Callable[[], float]
DEFAULT_PORTS = {"http": 80, "https": 443}


class NotHttpError(ConnectionError):
    """The server does not speak HTTP/1.1."""


class _StaleError(ConnectionError):
    """The server closed a reused connection before it read the request."""


class Receiver(Protocol):
    """Takes the parts of one response. `complete` is called last, and only for a whole body."""

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Take the status and the headers, with names in lower case."""

    def piece(self, data: bytes, now: float) -> None:
        """Take a piece of the body, and the time at which it was read."""

    def complete(self, now: float) -> None:
        """Take the end of the body, as its framing announced it."""


class HttpClient:
    """An HTTP client for one server, given by its base URL.

    `url`: the base URL; `/v1` is added if it has no path. `api_key`: sent as a bearer token. Raises
    ValueError if the URL or the key is malformed.
    """

    def __init__(self, url: str, api_key: str | None, clock: Clock) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"not a URL: {error}") from None
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname or not url.isprintable():
            raise ValueError("the URL must be like http://127.0.0.1:8000")
        if parts.username is not None or parts.password is not None:
            raise ValueError("put the key into PENSTOCK_API_KEY, not into the URL")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key has characters that are not allowed in a header")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        host += f":{port}" if port and port != DEFAULT_PORTS[parts.scheme] else ""
        path = parts.path.rstrip("/") or "/v1"
        self.url = f"{parts.scheme}://{host}{path}"
        self.is_local = parts.hostname == "localhost" or parts.hostname.startswith("127.")
        self._path, self._query = path, f"?{parts.query}" if parts.query else ""
        self._name = parts.hostname
        self._port = port or DEFAULT_PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address: str | None = None
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._clock = clock
        self._headers = f"Host: {host}\r\nUser-Agent: penstock-bench/{__version__}\r\n"
        if api_key:
            self._headers += f"Authorization: Bearer {api_key}\r\n"

    def get(self, route: str) -> bytes:
        """Return a GET request for a route."""
        return self._head("GET", route, "Accept: application/json\r\n")

    def post(self, route: str, body: bytes) -> bytes:
        """Return a POST request with a JSON body that accepts an event stream."""
        headers = (
            "Content-Type: application/json\r\nAccept: text/event-stream, application/json\r\n"
            f"Accept-Encoding: identity\r\nContent-Length: {len(body)}\r\n"
        )
        return self._head("POST", route, headers) + body

    def _head(self, method: str, route: str, headers: str) -> bytes:
        first = f"{method} {self._path}{route}{self._query} HTTP/1.1\r\n"
        return (first + self._headers + headers + "\r\n").encode("latin-1")

    async def send(self, request: bytes, receiver: Receiver) -> None:
        """Send a request and return when the response's body has ended.

        Raises OSError if there is no connection, TLS fails or the connection is cut. If cancelled,
        it drops the connection.
        """
        while self._idle:
            connection = self._idle.pop()
            with contextlib.suppress(_StaleError):
                await self._exchange(connection, request, receiver)
                return
        await self._exchange(await self._connect(), request, receiver)

    async def _exchange(
        self, connection: "_Connection", request: bytes, receiver: Receiver
    ) -> None:
        if await connection.exchange(request, receiver):
            self._idle.append(connection)

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        if self._address is not None:
            return await self._connect_to(self._address)
        # Look the name up only once: a resolver thread per connection would add latency.
        found = await loop.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        for address in addresses:
            try:
                connection = await self._connect_to(address)
            except OSError:
                if address == addresses[-1]:
                    raise
            else:
                self._address = address
                return connection
        raise OSError(f"{self._name} has no address")

    async def _connect_to(self, address: str) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._clock),
            address,
            self._port,
            ssl=self._tls,
            server_hostname=self._name if self._tls else None,
        )
        self._open.add(connection)
        connection.lost.add_done_callback(lambda _: self._open.discard(connection))
        return connection

    async def close(self) -> None:
        """Close every connection and wait until they are closed."""
        lost = [connection.lost for connection in self._open]
        for connection in list(self._open):
            connection.abort()
        await asyncio.gather(*lost)


class _Connection(asyncio.Protocol):
    """A connection, with one request at a time. asyncio and httptools name its callbacks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now = 0.0
        self._is_open = False
        self._is_new = True
        self._done: asyncio.Future[bool] | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def exchange(self, request: bytes, receiver: Receiver) -> bool:
        """Send a request and wait for the end of the body. Return whether it can send another."""
        if not self._is_open:
            raise _StaleError
        self._receiver = receiver
        self._headers: dict[str, str] = {}
        self._has_received = False
        self._parser = httptools.HttpResponseParser(self)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._done = done
        self._transport.write(request)
        try:
            return await done
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._done = None
            self._is_new = False

    def abort(self) -> None:
        self._transport.abort()

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        self._now = self._clock()
        self._has_received = True
        if self._done is None:  # no request is waiting for an answer
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._done.done():
                self._done.set_exception(_cause(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        self.lost.set_result(None)
        done = self._done
        if done is None or done.done():
            return
        if not self._has_received and not self._is_new:
            done.set_exception(_StaleError())
        elif exc is None and self._ends_with_connection():
            self._receiver.complete(self._clock())
            done.set_result(False)
        else:
            done.set_exception(ConnectionResetError("the connection ended before the answer"))

    def _ends_with_connection(self) -> bool:
        has_length = "content-length" in self._headers or "transfer-encoding" in self._headers
        return bool(self._headers) and not has_length

    # Callbacks of the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # otherwise the final head is still to come
            self._receiver.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        self._receiver.piece(data, self._now)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            self._headers.clear()
            return
        self._receiver.complete(self._now)
        if self._done is not None and not self._done.done():
            self._done.set_result(self._parser.should_keep_alive())


def _cause(error: httptools.HttpParserError) -> BaseException:
    """Return the exception that a callback raised, or NotHttpError if the parser failed."""
    if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
        return error.__context__
    return NotHttpError("the server does not speak HTTP/1.1")
