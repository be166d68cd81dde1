"""`AsyncClient`: `Client` for asyncio, with the same names and the same promises (see `client`).

    async with AsyncClient() as client, client.stream("Once upon a time") as stream:
        async for text in stream:
            print(text, end="", flush=True)

Not known here: anything that `client` does not know. A loop that is left without a `with` block
closes its connection when asyncio next gets to it.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Self, TypeVar, Unpack

import httpx

from penstock.client import http
from penstock.client.answer import Completion, Health, Options, Root

T = TypeVar("T")


class AsyncStream(http.AnswerSoFar):
    """`Stream` for asyncio: `async with`, `async for`, `await stream.cancel()`."""

    def __init__(self, client: httpx.AsyncClient, request: httpx.Request) -> None:
        super().__init__()
        self._client = client
        self._request = request
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

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
        """Close the connection. Before the end this ends the generation too."""
        self._is_closed = True
        if self._response is not None:
            await self._response.aclose()

    async def _open(self) -> AsyncIterator[bytes]:
        """Send the request, once; return the bytes of the response."""
        self._check_open()
        if self._pieces is None:
            with http.explained(self._client):
                self._response = await self._client.send(self._request, stream=True)
                try:
                    if http.is_refused(self._response):
                        await self._response.aread()
                    self._begin(self._response)
                except BaseException:
                    await self.close()
                    raise
            self._pieces = self._response.aiter_bytes()
        return self._pieces

    async def _next(self) -> str | None:
        pieces = await self._open()
        while self._answer.is_waiting:
            try:
                piece = await anext(pieces, None)
            except httpx.RequestError as error:
                self._answer.end(http.why(self._client, error))
            else:
                self._answer.end() if piece is None else self._answer.feed(piece)
        text = self._answer.take()
        if text is None:  # as in Stream
            with suppress(httpx.RequestError, httpx.StreamError):
                async for _ in pieces:
                    pass
        return text


class AsyncClient:
    """`Client` for asyncio. Tasks of one event loop may share it."""

    def __init__(
        self,
        url: str = http.DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | None = http.DEFAULT_TIMEOUT_S,
    ) -> None:
        self.url = url
        self._client = httpx.AsyncClient(**http.settings(url, api_key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    def stream(self, prompt: str | None = None, **options: Unpack[Options]) -> AsyncStream:
        """An answer as it is generated; see `Options` for what may be asked of it."""
        return AsyncStream(
            self._client, http.generation(self._client, prompt, options, stream=True)
        )

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
        """Close every connection."""
        await self._client.aclose()

    async def _ask(self, request: httpx.Request, kind: type[T]) -> T:
        with http.explained(self._client):
            response = await self._client.send(request)
        return http.understood(response, kind)
