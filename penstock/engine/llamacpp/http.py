"""A client of llama.cpp's own server, over its private Unix socket."""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from penstock.engine.llamacpp.answers import RefusedByEngineError, refusal_in

BACKLOG_PAUSE_S = 0.01


class HttpRequest(asyncio.Protocol):
    """An HTTP request on its own connection, with a streamed response.

    `on_body` is called with the bytes of the response's body, cut anywhere. `done` becomes the
    status when the response is complete, or raises ConnectionError if it is cut off.
    """

    def __init__(self, path: str, body: bytes | None, on_body: Callable[[bytes], None]) -> None:
        head = (
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: engine\r\n"
            f"Connection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body or b'')}\r\n\r\n"
        )
        self._request = head.encode() + (body or b"")
        self.on_body = on_body  # the parser looks this method up when it is created
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("llama.cpp closed the connection"))

    def abort(self) -> None:
        """Cancel `done` and drop the connection, so that llama.cpp drops the request."""
        self.done.cancel()
        if self._transport is not None:
            self._transport.abort()


class LlamaClient:
    """Sends requests to llama.cpp's server."""

    @property
    def _socket(self) -> str:
        """Return the path of the server's Unix socket."""
        raise NotImplementedError

    async def _ask(self, path: str, body: bytes | None = None) -> bytes:
        answer = bytearray()
        http = await self._open(path, body, answer.extend)
        try:
            status = await http.done
        finally:
            http.abort()
        if status != 200:
            raise RefusedByEngineError(refusal_in(bytes(answer)).message)
        return bytes(answer)

    async def _open(
        self, path: str, body: bytes | None, on_body: Callable[[bytes], None]
    ) -> HttpRequest:
        """Send a request to llama.cpp's server: a GET without a body, otherwise a POST."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, http = await loop.create_unix_connection(
                    lambda: HttpRequest(path, body, on_body), self._socket
                )
            except BlockingIOError:  # a thousand requests at once fill the socket's backlog
                await asyncio.sleep(BACKLOG_PAUSE_S)
            else:
                return http
