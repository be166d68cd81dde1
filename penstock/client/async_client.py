"""`AsyncClient`: the client of a Penstock server for asyncio.

In: a URL and the arguments of a call. Out: text as it arrives, then its figures, or an error of
`errors`. This module repeats only the code of `client` that waits for a socket.

    async with AsyncClient() as client, client.stream("Once upon a time") as stream:
        async for text in stream:
            print(text, end="", flush=True)
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Self, TypeVar, Unpack, assert_never

import httpx

from . import http
from .answer import Completion, Health, OnQueue, OnStatus, Options, Root
from .errors import RefusedError, ServerUnreachableError
from .resume import RESUME_TIMEOUT_S, Backoff, Read, Reading, Reconnect, Wait
from .retry import Attempts, Retries

T = TypeVar("T")


class AsyncStream(http.BaseStream):
    """An answer that arrives while the model generates it: read its text with `async for`.

    The request is sent when an `async for` loop or an `async with` block begins. If you leave the
    block early, the generation on the server ends at once. A loop outside of a block ends it only
    when asyncio finalizes the loop's iterator, so prefer a block. Inside a block you can leave a
    loop and continue with another loop. If the connection is cut, a resumable stream continues over
    a new connection (see `num_resumes`). A stream that cannot continue raises CutStreamError; it
    never ends silently.
    """

    def __init__(
        self, client: httpx.AsyncClient, request: httpx.Request, reading: Reading, retries: Retries
    ) -> None:
        super().__init__(reading)
        self._client = client
        self._request = request
        self._retries = retries
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._left = asyncio.Event()
        self._cancelling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._is_entered = True
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        try:
            while (text := await self._next()) is not None:
                yield text
        finally:
            if not self._is_entered:
                await self.close()

    async def cancel(self) -> None:
        """Cancel the generation on the server, and keep the stream open to read its end.

        The stream then returns the text generated so far and ends with the finish reason
        "cancelled". A stream that has not begun is closed; a stream that has ended stays as it is.
        Raises RefusedError if the server refuses, and ServerUnreachableError or CutStreamError if
        the server cannot be reached.
        """
        if self.id is None:
            await self.close()
        elif not self._answer.is_over:
            with http.translated_errors(self._client):
                response = await self._client.send(http.cancel_request(self._client, self.id))
            http.check_cancelled(response)

    async def close(self) -> None:
        """Leave the stream and close its connection.

        If the stream has not ended, this ends its generation on the server too, except for a stream
        from `AsyncClient.resume`. Reading it afterwards raises PenstockError.
        """
        self._is_closed = True
        self._left.set()
        if self._reading.leave() and self.id is not None:
            # A task, because the caller may be cancelled again and again meanwhile.
            self._cancelling = asyncio.create_task(self._cancel_on_server(self.id))
        if self._response is not None:
            await self._response.aclose()
        if self._cancelling is not None:
            await asyncio.shield(self._cancelling)

    async def _open(self) -> None:
        """Send the request, unless it was sent already; again after an error that allows it."""
        self._check_open()
        attempts = Attempts(self._retries)
        while self._response is None:
            try:
                await self._send()
            except (RefusedError, ServerUnreachableError) as error:
                await self._wait(attempts.wait_s_after(error))
                self._check_open()

    async def _send(self) -> None:
        with http.translated_errors(self._client):
            self._response = await self._client.send(self._request, stream=True)
            try:
                if http.is_refused(self._response):
                    await self._response.aread()
                self._begin(self._response)
            except RefusedError:
                await self._response.aclose()
                self._response = None
                raise
            except BaseException:
                await self.close()
                raise
        self._listen_to(self._response)

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the stream is left."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._left.wait(), seconds)

    async def _next(self) -> str | None:
        await self._open()
        while (step := self._reading.step()) is not None:
            self._check_open()
            match step:
                case Read():
                    await self._read()
                case Wait(seconds):
                    await self._wait(seconds)
                case Reconnect():
                    await self._reconnect(step)
                case _:
                    assert_never(step)
        text = self._answer.take()
        if text is None and self._pieces is not None:  # as in `Stream._next`
            with suppress(httpx.RequestError, httpx.StreamError):
                async for _ in self._pieces:
                    pass
        return text

    async def _read(self) -> None:
        assert self._pieces is not None
        try:
            piece = await anext(self._pieces, None)
        except httpx.RequestError as error:
            self._reading.cut(http.reason_of(self._client, error))
        else:
            self._reading.cut(http.ENDED) if piece is None else self._reading.feed(piece)

    async def _reconnect(self, step: Reconnect) -> None:
        assert self._response is not None
        assert self.id is not None
        await self._response.aclose()
        try:
            request = http.reconnect_request(self._client, self.id, step)
            self._response = await self._client.send(request, stream=True)
            if http.is_refused(self._response):
                await self._response.aread()
        except httpx.RequestError as error:
            self._reading.cut(http.reason_of(self._client, error))
        else:
            self._continue(self._response)
            self._listen_to(self._response)

    def _listen_to(self, response: httpx.Response) -> None:
        self._pieces = response.aiter_bytes()
        if self._reading.is_resumable:
            http.expect_heartbeats(self._client, response.request)

    async def _cancel_on_server(self, stream_id: str) -> None:
        with suppress(httpx.HTTPError, RuntimeError):  # the server ends it after its linger
            await self._client.send(http.quick_cancel_request(self._client, stream_id))


class AsyncClient:
    """A client of one Penstock server. Tasks of one event loop can share it.

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

    Use the client in an `async with` block, or await `close` when you no longer need it. Raises
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
        self._closing = asyncio.Event()
        self._client = httpx.AsyncClient(**http.connection_options(url, api_key, timeout))
        self._streams: weakref.WeakSet[AsyncStream] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

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
    ) -> AsyncStream:
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
    ) -> AsyncStream:
        """Return a resumable stream that another client or process opened.

        `stream_id` is the stream's `id`. `after` is the id of the last event that you already have,
        such as the `last_event_id` of a stream; None, the default, reads from the start. The stream
        may be running or ended, and other clients may read it too. Leaving it does not end the
        generation; `AsyncStream.cancel` does. `on_cut`, `on_resume` and `on_status` are called as
        in `stream`.

        Raises ValueError for an empty `stream_id` or a negative `after`. Reading the stream raises
        RefusedError if the server does not have the stream, and the errors of `stream`.
        """
        reading = http.shared_reading(self._policy, stream_id, after, on_cut, on_resume, on_status)
        request = http.resume_request(
            self._client, stream_id, after, status_events=on_status is not None
        )
        return self._new_stream(request, reading)

    async def generate(self, prompt: str | None = None, **options: Unpack[Options]) -> Completion:
        """Generate the whole answer and return it.

        Give either `prompt`, the text to continue, or the option `messages`, a conversation.
        `Options` lists the `options`. Raises TypeError or ValueError for invalid arguments, and
        ServerUnreachableError, RefusedError, UnexpectedAnswerError or CutStreamError.
        """
        request = http.generate_request(self._client, prompt, options, stream=False)
        return await self._ask(request, Completion)

    async def health(self) -> str:
        """Return the status that the server reports: "healthy".

        Raises RefusedError if the server is not ready, and ServerUnreachableError, CutStreamError
        or UnexpectedAnswerError if it does not answer.
        """
        return (await self._ask(self._client.build_request("GET", "/health"), Health)).status

    async def model(self) -> str:
        """Return the name of the model that the server serves.

        Raises ServerUnreachableError, RefusedError, CutStreamError or UnexpectedAnswerError.
        """
        return (await self._ask(self._client.build_request("GET", "/"), Root)).model

    async def close(self) -> None:
        """Close every stream of this client, and then every connection."""
        self._closing.set()
        for stream in list(self._streams):
            await stream.close()
        await self._client.aclose()

    def _new_stream(self, request: httpx.Request, reading: Reading) -> AsyncStream:
        stream = AsyncStream(self._client, request, reading, self._retries)
        self._streams.add(stream)
        return stream

    async def _ask(self, request: httpx.Request, kind: type[T]) -> T:
        attempts = Attempts(self._retries)
        while True:
            try:
                with http.translated_errors(self._client):
                    response = await self._client.send(request)
                return http.decoded(response, kind)
            except (RefusedError, ServerUnreachableError) as error:
                seconds = attempts.wait_s_after(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), seconds)
