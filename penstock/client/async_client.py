"""`AsyncClient`: `Client` for asyncio, with the same names and the same promises (see `client`).

    async with AsyncClient() as client, client.stream("Once upon a time") as stream:
        async for text in stream:
            print(text, end="", flush=True)

Not known here: anything that `client` does not know. A loop that is left without a `with` block
closes its stream when asyncio next gets to it.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Self, TypeVar, Unpack, assert_never

import httpx

from penstock.client import http
from penstock.client.answer import Completion, Health, Options, Root
from penstock.client.resume import RESUME_TIMEOUT_S, Ask, Backoff, Read, Reading, Wait

T = TypeVar("T")


class AsyncStream(http.AnswerSoFar):
    """`Stream` for asyncio: `async with`, `async for`, `await stream.cancel()`."""

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request, reading: Reading) -> None:
        super().__init__(reading)
        self._client = client
        self._request = request
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._left = asyncio.Event()
        self._farewell: asyncio.Task[None] | None = None

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
        """End the generation; what was generated and a terminal event still come."""
        if self.id is None:
            await self.close()
        elif not self._answer.is_over:
            with http.explained(self._client):
                response = await self._client.send(http.cancellation(self._client, self.id))
            http.check_cancelled(response)

    async def close(self) -> None:
        """Leave the stream. Before the end this ends the generation too, unless it is another's."""
        self._is_closed = True
        self._left.set()
        if self._reading.leave() and self.id is not None:
            # A task, for whoever leaves may be cancelled again and again meanwhile.
            self._farewell = asyncio.create_task(self._say_farewell(self.id))
        if self._response is not None:
            await self._response.aclose()
        if self._farewell is not None:
            await asyncio.shield(self._farewell)

    async def _open(self) -> None:
        """Send the request, once."""
        self._check_open()
        if self._response is None:
            with http.explained(self._client):
                self._response = await self._client.send(self._request, stream=True)
                try:
                    if http.is_refused(self._response):
                        await self._response.aread()
                    self._begin(self._response)
                except BaseException:
                    await self.close()
                    raise
            self._listen_to(self._response)

    async def _next(self) -> str | None:
        await self._open()
        while (step := self._reading.step()) is not None:
            self._check_open()
            match step:
                case Read():
                    await self._read()
                case Wait(seconds):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._left.wait(), seconds)
                case Ask():
                    await self._ask(step)
                case _:
                    assert_never(step)
        text = self._answer.take()
        if text is None and self._pieces is not None:  # as in Stream
            with suppress(httpx.RequestError, httpx.StreamError):
                async for _ in self._pieces:
                    pass
        return text

    async def _read(self) -> None:
        assert self._pieces is not None
        try:
            piece = await anext(self._pieces, None)
        except httpx.RequestError as error:
            self._reading.cut(http.why(self._client, error))
        else:
            self._reading.cut(http.ENDED) if piece is None else self._reading.feed(piece)

    async def _ask(self, ask: Ask) -> None:
        assert self._response is not None
        assert self.id is not None
        await self._response.aclose()
        try:
            request = http.attempt(self._client, self.id, ask)
            self._response = await self._client.send(request, stream=True)
            if http.is_refused(self._response):
                await self._response.aread()
        except httpx.RequestError as error:
            self._reading.cut(http.why(self._client, error))
        else:
            self._go_on(self._response)
            self._listen_to(self._response)

    def _listen_to(self, response: httpx.Response) -> None:
        self._pieces = response.aiter_bytes()
        if self._reading.is_resumable:
            http.expect_heartbeats(self._client, response.request)

    async def _say_farewell(self, stream_id: str) -> None:
        with suppress(httpx.HTTPError, RuntimeError):  # the server's linger is a second net
            await self._client.send(http.farewell(self._client, stream_id))


class AsyncClient:
    """`Client` for asyncio. Tasks of one event loop may share it."""

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
        self._client = httpx.AsyncClient(**http.settings(url, api_key, timeout))
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
        **options: Unpack[Options],
    ) -> AsyncStream:
        """An answer as it is generated; see `Options` for what may be asked of it.

        After a cut it goes on by itself, and tells `on_cut` and `on_resume`, as `Client.stream`.
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
    ) -> AsyncStream:
        """Read a resumable stream that was begun elsewhere, as `Client.resume`."""
        reading = http.reading_along(self._patience, stream_id, after, on_cut, on_resume)
        return self._begun(http.resumption(self._client, stream_id, after), reading)

    async def generate(self, prompt: str | None = None, **options: Unpack[Options]) -> Completion:
        """The whole answer at once."""
        request = http.generation(self._client, prompt, options, stream=False)
        return await self._ask(request, Completion)

    async def health(self) -> str:
        """The server's own word for how it is: "healthy"."""
        return (await self._ask(self._client.build_request("GET", "/health"), Health)).status

    async def model(self) -> str:
        """The name of the model that is served."""
        return (await self._ask(self._client.build_request("GET", "/"), Root)).model

    async def close(self) -> None:
        """Leave every stream, and close every connection."""
        for stream in list(self._streams):
            await stream.close()
        await self._client.aclose()

    def _begun(self, request: httpx.Request, reading: Reading) -> AsyncStream:
        stream = AsyncStream(self._client, request, reading)
        self._streams.add(stream)
        return stream

    async def _ask(self, request: httpx.Request, kind: type[T]) -> T:
        with http.explained(self._client):
            response = await self._client.send(request)
        return http.understood(response, kind)
