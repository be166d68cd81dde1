"""`Client`: the client of a Penstock server for programs without asyncio.

In: a URL and the arguments of a call. Out: text as it arrives, then its figures, or an error of
`errors`. This module does not know how bytes become text (see `answer`) or what to do after a cut
(see `resume`). `async_client` is its counterpart for asyncio; the two repeat only the code that
waits for a socket.

    client = Client("http://127.0.0.1:8000")
    with client.stream("Once upon a time", max_tokens=50) as stream:
        for text in stream:
            print(text, end="", flush=True)
    print(stream.finish_reason, stream.usage)
"""

import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeVar, Unpack, assert_never

import httpx

from . import http
from .answer import Completion, Health, OnQueue, OnStatus, Options, Root
from .errors import RefusedError, ServerUnreachableError
from .resume import RESUME_TIMEOUT_S, Backoff, Read, Reading, Reconnect, Wait
from .retry import Attempts, Retries

T = TypeVar("T")


class Stream(http.BaseStream):
    """An answer that arrives while the model generates it: iterate over it to read its text.

    The request is sent when a loop or a `with` block begins. If you leave the loop or the block
    early, the generation on the server ends at once. Inside a `with` block you can leave a loop and
    continue with another loop. If the connection is cut, a resumable stream continues over a new
    connection (see `num_resumes`). A stream that cannot continue raises CutStreamError; it never
    ends silently.
    """

    def __init__(
        self, client: httpx.Client, request: httpx.Request, reading: Reading, retries: Retries
    ) -> None:
        super().__init__(reading)
        self._client = client
        self._request = request
        self._retries = retries
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._left = threading.Event()
        self._leaving = threading.RLock()  # `Client.close` waits for a thread that is leaving

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
        """Cancel the generation on the server, and keep the stream open to read its end.

        The stream then returns the text generated so far and ends with the finish reason
        "cancelled". A stream that has not begun is closed; a stream that has ended stays as it is.
        Raises RefusedError if the server refuses, and ServerUnreachableError or CutStreamError if
        the server cannot be reached.
        """
        if self.id is None:
            self.close()
        elif not self._answer.is_over:
            with http.translated_errors(self._client):
                response = self._client.send(http.cancel_request(self._client, self.id))
            http.check_cancelled(response)

    def close(self) -> None:
        """Leave the stream and close its connection.

        If the stream has not ended, this ends its generation on the server too, except for a stream
        from `Client.resume`. Reading it afterwards raises PenstockError.
        """
        self._is_closed = True
        self._left.set()
        with self._leaving:
            if self._response is not None:
                self._response.close()
            if self._reading.leave() and self.id is not None:
                with suppress(httpx.HTTPError, RuntimeError):  # the server ends it after its linger
                    self._client.send(http.quick_cancel_request(self._client, self.id))

    def _open(self) -> None:
        """Send the request, unless it was sent already; again after an error that allows it."""
        self._check_open()
        attempts = Attempts(self._retries)
        while self._response is None:
            try:
                self._send()
            except (RefusedError, ServerUnreachableError) as error:
                self._wait(attempts.wait_s_after(error))
                self._check_open()

    def _send(self) -> None:
        with http.translated_errors(self._client):
            self._response = self._client.send(self._request, stream=True)
            try:
                if http.is_refused(self._response):
                    with self._closable():
                        self._response.read()
                self._begin(self._response)
            except RefusedError:
                self._response.close()
                self._response = None
                raise
            except BaseException:
                self.close()
                raise
        self._listen_to(self._response)

    def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the stream is left."""
        self._left.wait(seconds)

    def _next(self) -> str | None:
        self._open()
        while (step := self._reading.step()) is not None:
            self._check_open()
            match step:
                case Read():
                    self._read()
                case Wait(seconds):
                    self._wait(seconds)
                case Reconnect():
                    self._reconnect(step)
                case _:
                    assert_never(step)
        text = self._answer.take()
        if text is None:  # read to the end of the response, so that its connection can be reused
            with suppress(httpx.RequestError, httpx.StreamError):
                for _ in self._pieces:
                    pass
        return text

    def _read(self) -> None:
        try:
            with self._closable():
                piece = next(self._pieces, None)
        except httpx.RequestError as error:
            self._reading.cut(http.reason_of(self._client, error))
        else:
            self._reading.cut(http.ENDED) if piece is None else self._reading.feed(piece)

    def _reconnect(self, step: Reconnect) -> None:
        assert self._response is not None
        assert self.id is not None
        self._response.close()
        try:
            request = http.reconnect_request(self._client, self.id, step)
            self._response = self._client.send(request, stream=True)
            if http.is_refused(self._response):
                with self._closable():
                    self._response.read()
        except httpx.RequestError as error:
            self._reading.cut(http.reason_of(self._client, error))
        else:
            self._continue(self._response)
            self._listen_to(self._response)

    @contextmanager
    def _closable(self) -> Iterator[None]:
        """Say in our own words that another thread closed the stream while this one read it."""
        try:
            yield
        except httpx.StreamError:
            self._check_open()
            raise

    def _listen_to(self, response: httpx.Response) -> None:
        self._pieces = response.iter_bytes()
        if self._reading.is_resumable:
            http.expect_heartbeats(self._client, response.request)


class Client:
    """A client of one Penstock server. Threads can share it.

    `url` is the URL of the server, with its path if it has one. `api_key` is the key to send; None
    sends no key. `timeout` is the number of seconds that the server may send nothing, 600 by
    default; None sets no limit. A connection must be made within `timeout` and within 10 seconds.
    A resumable stream has heartbeats, so 45 seconds without a byte cut its connection.

    `resume_timeout` is the number of seconds that a cut stream may be without a connection before
    the client gives up, 50 by default. A server continues a stream without readers for 60 seconds.
    `backoff` sets the waits between attempts to resume a stream, and between retries.

    `retries` is how often the client sends a request again that got no answer, 0 by default. It
    does so only if that is safe: no connection could be made, or the server refused the request
    and says that it is `retry_safe`. It waits for the server's `Retry-After`, if that is 60 seconds
    or less. Then it raises the last error. An answer that has begun is never requested again.

    Use the client in a `with` block, or call `close` when you no longer need it. Raises
    ValueError if `url` is not the URL of a server, or `resume_timeout` or `retries` is negative.
    """

    def __init__(
        self,
        url: str = http.DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = http.DEFAULT_TIMEOUT_S,
        retries: int = 0,
        resume_timeout: float = RESUME_TIMEOUT_S,
        backoff: Backoff = Backoff(),  # noqa: B008 - it is frozen
    ) -> None:
        self.url = url
        self._policy = http.resume_policy(resume_timeout, backoff)
        self._retries = http.retries_of(retries, backoff)
        self._closing = threading.Event()
        self._client = httpx.Client(**http.connection_options(url, api_key, timeout))
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
        on_queue: OnQueue | None = None,
        on_status: OnStatus | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Return the answer to a prompt as a stream; the request is sent when you read it.

        Give either `prompt`, the text to continue, or the option `messages`, a conversation.
        `Options` lists the `options`. By default the stream is `resumable`: after a cut it
        continues over a new connection, and no text is lost or repeated. With `resumable=False` the
        stream raises CutStreamError at the first cut.

        `on_cut` is called with the reason, a sentence, each time the connection is lost.
        `on_resume` is called without arguments each time the stream continues. `on_queue` is called
        with a `QueuePlace` at first and when it changes, while the stream waits for its turn; after
        a cut in the queue the server reports no places. `on_status` is called with a `StreamStatus`
        when something happens to the stream: it waits, its prompt is read, tokens come, the engine
        is silent or restarts, another server takes the stream over. Both are called while you read
        the stream.

        Raises TypeError or ValueError for invalid arguments. Reading the stream raises
        ServerUnreachableError, RefusedError, UnexpectedAnswerError, CutStreamError or
        FailedStreamError.
        """
        request = http.generate_request(
            self._client,
            prompt,
            options,
            stream=True,
            resumable=resumable,
            queue_events=on_queue is not None,
            status_events=on_status is not None,
        )
        policy = self._policy if resumable else None
        reading = http.own_reading(policy, on_cut, on_resume, on_queue, on_status)
        return self._new_stream(request, reading)

    def resume(
        self,
        stream_id: str,
        after: int | None = None,
        *,
        on_cut: http.OnCut | None = None,
        on_resume: http.OnResume | None = None,
        on_status: OnStatus | None = None,
    ) -> Stream:
        """Return a resumable stream that another client or process opened.

        `stream_id` is the stream's `id`. `after` is the id of the last event that you already have,
        such as the `last_event_id` of a stream; None, the default, reads from the start. The stream
        may be running or ended, and other clients may read it too. Leaving it does not end the
        generation; `Stream.cancel` does. `on_cut`, `on_resume` and `on_status` are called as in
        `stream`.

        Raises ValueError for an empty `stream_id` or a negative `after`. Reading the stream raises
        RefusedError if the server does not have the stream, and the errors of `stream`.
        """
        reading = http.shared_reading(self._policy, stream_id, after, on_cut, on_resume, on_status)
        request = http.resume_request(
            self._client, stream_id, after, status_events=on_status is not None
        )
        return self._new_stream(request, reading)

    def generate(self, prompt: str | None = None, **options: Unpack[Options]) -> Completion:
        """Generate the whole answer and return it.

        Give either `prompt`, the text to continue, or the option `messages`, a conversation.
        `Options` lists the `options`. Raises TypeError or ValueError for invalid arguments, and
        ServerUnreachableError, RefusedError, UnexpectedAnswerError or CutStreamError.
        """
        request = http.generate_request(self._client, prompt, options, stream=False)
        return self._ask(request, Completion)

    def health(self) -> str:
        """Return the status that the server reports: "healthy".

        Raises RefusedError if the server is not ready, and ServerUnreachableError, CutStreamError
        or UnexpectedAnswerError if it does not answer.
        """
        return self._ask(self._client.build_request("GET", "/health"), Health).status

    def model(self) -> str:
        """Return the name of the model that the server serves.

        Raises ServerUnreachableError, RefusedError, CutStreamError or UnexpectedAnswerError.
        """
        return self._ask(self._client.build_request("GET", "/"), Root).model

    def close(self) -> None:
        """Close every stream of this client, and then every connection."""
        self._closing.set()
        for stream in list(self._streams):
            stream.close()
        self._client.close()

    def _new_stream(self, request: httpx.Request, reading: Reading) -> Stream:
        stream = Stream(self._client, request, reading, self._retries)
        self._streams.add(stream)
        return stream

    def _ask(self, request: httpx.Request, kind: type[T]) -> T:
        attempts = Attempts(self._retries)
        while True:
            try:
                with http.translated_errors(self._client):
                    response = self._client.send(request)
                return http.decoded(response, kind)
            except (RefusedError, ServerUnreachableError) as error:
                seconds = attempts.wait_s_after(error)
            self._closing.wait(seconds)
