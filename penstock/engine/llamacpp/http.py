"""A client of llama.cpp's own server, over its private Unix socket.

llama.cpp makes a thread for every open connection, up to a thousand, and works on a request until
it notices that the client has left. So a connection counts as open until llama.cpp itself has
closed it, and only so many are open at once: `MAX_ASKING` for questions, and one for each slot.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from penstock.engine.llamacpp.answers import RefusedByEngineError, refusal_in
from penstock.engine.tasks import end_process

BACKLOG_PAUSE_S = 0.01
# Questions other than those for an answer, at once: conversations rendered, properties.
MAX_ASKING = 4
# The route whose answer comes from llama.cpp's main loop, which also generates.
MAIN_LOOP = "/slots"


class HttpRequest(asyncio.Protocol):
    """An HTTP request on its own connection, with a streamed response.

    `on_body` is called with the bytes of the response's body, cut anywhere. `done` becomes the
    status when the response is complete, or raises ConnectionError if it is cut off. `closed` is
    set once llama.cpp has closed the connection: its handler has ended.
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
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        if not self.done.done():
            self.done.set_exception(ConnectionError("llama.cpp closed the connection"))

    async def leave(self) -> None:
        """Cancel `done`, and wait until llama.cpp has dropped the request and the connection.

        llama.cpp takes the end of what we send for the client's leaving. It notices that when it
        writes the next token, and once a second.
        """
        self.done.cancel()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
        await self.closed.wait()


class LlamaClient:
    """Sends requests to llama.cpp's server at `socket`, the path of its Unix socket."""

    def __init__(self) -> None:
        self.socket = ""  # the engine knows it when it starts
        self._asking = asyncio.Semaphore(MAX_ASKING)

    async def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Return the body of the answer. Raises RefusedByEngineError unless the status is 200."""
        async with self._asking:
            return await self.ask_now(path, body)

    async def ask_now(self, path: str, body: bytes | None = None) -> bytes:
        """Ask without waiting until other questions are answered."""
        answer = bytearray()
        http = await self.open(path, body, answer.extend)
        try:
            status = await http.done
        finally:
            await http.leave()
        if status != 200:
            raise RefusedByEngineError(refusal_in(bytes(answer)).message)
        return bytes(answer)

    async def stop(self, http: HttpRequest) -> None:
        """Have llama.cpp stop generating, and wait until it has.

        Its handler hands the main loop the order to stop before it closes the connection. The main
        loop obeys all orders before it computes again; so it has obeyed once it answers.
        """
        is_done = http.done.done() and not http.done.cancelled()
        await http.leave()
        if not is_done:
            await self.ask_now(MAIN_LOOP)

    async def open(
        self, path: str, body: bytes | None, on_body: Callable[[bytes], None]
    ) -> HttpRequest:
        """Send a request to llama.cpp's server: a GET without a body, otherwise a POST."""
        connecting = asyncio.ensure_future(self._connect(path, body, on_body))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await self.stop(await connecting)
            raise

    async def _connect(
        self, path: str, body: bytes | None, on_body: Callable[[bytes], None]
    ) -> HttpRequest:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, http = await loop.create_unix_connection(
                    lambda: HttpRequest(path, body, on_body), self.socket
                )
            except (FileNotFoundError, ConnectionRefusedError):
                end_process("llama.cpp's server has no socket any more")
            except BlockingIOError:  # many requests at once fill the socket's backlog
                await asyncio.sleep(BACKLOG_PAUSE_S)
            else:
                return http
