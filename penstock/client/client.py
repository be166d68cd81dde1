"""`Client`: what a program uses to talk to a Penstock server.

In: a URL and what is asked. Out: text as it comes, then its figures, or one of `errors`. Not known
here: how bytes become text (see `answer`), what to do after a cut (see `resume`), servers, engines.
`async_client` is its twin: only what waits for a socket stands in both.

    client = Client("http://127.0.0.1:8000")
    with client.stream("Once upon a time", max_tokens=50) as stream:
        for text in stream:
            print(text, end="", flush=True)
    print(stream.finish_reason, stream.usage)
"""

import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Self, TypeVar, Unpack, assert_never

import httpx

from penstock.client import http
from penstock.client.answer import Completion, Health, Options, Root
from penstock.client.resume import RESUME_TIMEOUT_S, Ask, Backoff, Read, Reading, Wait

T = TypeVar("T")


class Stream(http.AnswerSoFar):
    """An answer as it is generated: iterate over it for its text.

    The request is sent when a loop or a `with` block begins. Leaving it early ends the generation
    on the server at once. Inside a `with` block a loop may be left and taken up again. A stream
    whose connection is cut goes on over another one (see `num_resumes`), or raises; it never just
    ends.
    """

    def __init__(self, client: httpx.Client, request: httpx.Request, reading: Reading) -> None:
        super().__init__(reading)
        self._client = client
        self._request = request
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._left = threading.Event()
        self._leaving = threading.RLock()  # a client that is closed waits for who leaves a stream

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
        """Leave the stream. Before the end this ends the generation too, unless it is another's."""
        self._is_closed = True
        self._left.set()
        with self._leaving:
            if self._response is not None:
                self._response.close()
            if self._reading.leave() and self.id is not None:
                with suppress(httpx.HTTPError, RuntimeError):  # the server's linger is a second net
                    self._client.send(http.farewell(self._client, self.id))

    def _open(self) -> None:
        """Send the request, once."""
        self._check_open()
        if self._response is None:
            with http.explained(self._client):
                self._response = self._client.send(self._request, stream=True)
                try:
                    if http.is_refused(self._response):
                        self._response.read()
                    self._begin(self._response)
                except BaseException:
                    self.close()
                    raise
            self._listen_to(self._response)

    def _next(self) -> str | None:
        self._open()
        while (step := self._reading.step()) is not None:
            self._check_open()
            match step:
                case Read():
                    self._read()
                case Wait(seconds):
                    self._left.wait(seconds)
                case Ask():
                    self._ask(step)
                case _:
                    assert_never(step)
        text = self._answer.take()
        if text is None:  # read the end of the response too: its connection can be used again
            with suppress(httpx.RequestError, httpx.StreamError):
                for _ in self._pieces:
                    pass
        return text

    def _read(self) -> None:
        try:
            piece = next(self._pieces, None)
        except httpx.RequestError as error:
            self._reading.cut(http.why(self._client, error))
        else:
            self._reading.cut(http.ENDED) if piece is None else self._reading.feed(piece)

    def _ask(self, ask: Ask) -> None:
        assert self._response is not None
        assert self.id is not None
        self._response.close()
        try:
            request = http.attempt(self._client, self.id, ask)
            self._response = self._client.send(request, stream=True)
            if http.is_refused(self._response):
                self._response.read()
        except httpx.RequestError as error:
            self._reading.cut(http.why(self._client, error))
        else:
            self._go_on(self._response)
            self._listen_to(self._response)

    def _listen_to(self, response: httpx.Response) -> None:
        self._pieces = response.iter_bytes()
        if self._reading.is_resumable:
            http.expect_heartbeats(self._client, response.request)


class Client:
    """A Penstock server, seen from a program. Threads may share it.

    `timeout` is how many seconds may pass without a byte from the server, None for any number;
    connecting may take ten of them. (A stream that can be resumed has heartbeats: 45 seconds of
    silence are a cut.) `resume_timeout` is how many seconds a stream that was cut may be without a
    connection before it is given up; the server keeps it for 60. `backoff` is how long to wait
    before each attempt.
    """

    def __init__(
        self,
        url: str = http.DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = http.DEFAULT_TIMEOUT_S,
        resume_timeout: float = RESUME_TIMEOUT_S,
        backoff: Backoff = Backoff(),  # noqa: B008 - it is frozen
    ) -> None:
        self.url = url
        self._patience = http.patience(resume_timeout, backoff)
        self._client = httpx.Client(**http.settings(url, api_key, timeout))
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def stream(
        self,
        prompt: str | None = None,
        *,
        resumable: bool = True,
        on_cut: http.OnCut | None = None,
        on_resume: http.OnResume | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """An answer as it is generated; see `Options` for what may be asked of it.

        Where it is resumable it outlives its connection: after a cut it goes on by itself, with no
        text lost and none given twice. `on_cut` is called with the reason when the connection is
        lost, `on_resume` when the stream goes on.
        """
        request = http.generation(self._client, prompt, options, stream=True, resumable=resumable)
        patience = self._patience if resumable else None
        return self._begun(request, http.reading(patience, on_cut, on_resume))

    def resume(
        self,
        stream_id: str,
        after: int | None = None,
        *,
        on_cut: http.OnCut | None = None,
        on_resume: http.OnResume | None = None,
    ) -> Stream:
        """Read a resumable stream that was begun elsewhere, from its start or after an event.

        It need not have ended, and others may read it too: leaving it does not end it, `cancel`
        does. Another process goes on where a `stream` stopped by its `id` and `last_event_id`.
        """
        reading = http.reading_along(self._patience, stream_id, after, on_cut, on_resume)
        return self._begun(http.resumption(self._client, stream_id, after), reading)

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
        """Leave every stream, and close every connection."""
        for stream in list(self._streams):
            stream.close()
        self._client.close()

    def _begun(self, request: httpx.Request, reading: Reading) -> Stream:
        stream = Stream(self._client, request, reading)
        self._streams.add(stream)
        return stream

    def _ask(self, request: httpx.Request, kind: type[T]) -> T:
        with http.explained(self._client):
            response = self._client.send(request)
        return http.understood(response, kind)
