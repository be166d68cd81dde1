"""`Client`: what a program uses to talk to a Penstock server.

In: a URL and what is asked. Out: text as it comes, then its figures, or one of `errors`. Not known
here: how bytes become text (see `answer`), servers, engines. `async_client` is its twin: only what
waits for a socket stands in both.

    client = Client("http://127.0.0.1:8000")
    with client.stream("Once upon a time", max_tokens=50) as stream:
        for text in stream:
            print(text, end="", flush=True)
    print(stream.finish_reason, stream.usage)
"""

from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Self, TypeVar, Unpack

import httpx

from penstock.client import http
from penstock.client.answer import Completion, Health, Options, Root

T = TypeVar("T")


class Stream(http.AnswerSoFar):
    """An answer as it is generated: iterate over it for its text.

    The request is sent when a loop or a `with` block begins. Leaving it early closes the
    connection, which ends the generation on the server at once. Inside a `with` block a loop may be
    left and taken up again. A stream that is cut raises; it never just ends.
    """

    def __init__(self, client: httpx.Client, request: httpx.Request) -> None:
        super().__init__()
        self._client = client
        self._request = request
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] | None = None

    def __enter__(self) -> Self:
        self._is_entered = True
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Generator[str, None, None]:
        try:
            while (text := self._next()) is not None:
                yield text
        finally:
            if not self._is_entered:
                self.close()

    def cancel(self) -> None:
        """End the generation; what was generated and a terminal event still come."""
        if self.id is None:
            self.close()
        elif not self._answer.is_over:
            with http.explained(self._client):
                response = self._client.send(http.cancellation(self._client, self.id))
            http.check_cancelled(response)

    def close(self) -> None:
        """Close the connection. Before the end this ends the generation too."""
        self._is_closed = True
        if self._response is not None:
            self._response.close()

    def _open(self) -> Iterator[bytes]:
        """Send the request, once; return the bytes of the response."""
        self._check_open()
        if self._pieces is None:
            with http.explained(self._client):
                self._response = self._client.send(self._request, stream=True)
                try:
                    if http.is_refused(self._response):
                        self._response.read()
                    self._begin(self._response)
                except BaseException:
                    self.close()
                    raise
            self._pieces = self._response.iter_bytes()
        return self._pieces

    def _next(self) -> str | None:
        pieces = self._open()
        while self._answer.is_waiting:
            try:
                piece = next(pieces, None)
            except httpx.RequestError as error:
                self._answer.end(http.why(self._client, error))
            else:
                self._answer.end() if piece is None else self._answer.feed(piece)
        text = self._answer.take()
        if text is None:  # read the end of the response too: its connection can be used again
            with suppress(httpx.RequestError, httpx.StreamError):
                for _ in pieces:
                    pass
        return text


class Client:
    """A Penstock server, seen from a program. Threads may share it.

    `timeout` is how many seconds may pass without a byte from the server, None for any number;
    connecting may take ten of them.
    """

    def __init__(
        self,
        url: str = http.DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = http.DEFAULT_TIMEOUT_S,
    ) -> None:
        self.url = url
        self._client = httpx.Client(**http.settings(url, api_key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def stream(self, prompt: str | None = None, **options: Unpack[Options]) -> Stream:
        """An answer as it is generated; see `Options` for what may be asked of it."""
        return Stream(self._client, http.generation(self._client, prompt, options, stream=True))

    def generate(self, prompt: str | None = None, **options: Unpack[Options]) -> Completion:
        """The whole answer at once."""
        request = http.generation(self._client, prompt, options, stream=False)
        return self._ask(request, Completion)

    def health(self) -> str:
        """The server's own word for how it is: "healthy"."""
        return self._ask(self._client.build_request("GET", "/health"), Health).status

    def model(self) -> str:
        """The name of the model that is served."""
        return self._ask(self._client.build_request("GET", "/"), Root).model

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def _ask(self, request: httpx.Request, kind: type[T]) -> T:
        with http.explained(self._client):
            response = self._client.send(request)
        return http.understood(response, kind)
