"""A connection in asyncio, with or without TLS: raw bytes out, strictly parsed answers in.

Many of them run at once in one test, which `raw.Connection` cannot do.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from tests.support.answers import Answer, first_answer
from tests.support.raw import PATIENCE_S, reset_on_close

T = TypeVar("T")


class Wire(asyncio.Protocol):
    """A connection. What the server sent stays readable after the connection's end."""

    def __init__(self) -> None:
        self.received = b""
        self.is_closed = False
        """True if the server has closed the connection, by FIN or RST."""
        self._news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._transport: asyncio.Transport | None = None

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._news.set()
        self._has_room.set()

    def pause_writing(self) -> None:
        self._has_room.clear()

    def resume_writing(self) -> None:
        self._has_room.set()

    # Tests call these.

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def send(self, data: bytes) -> "Wire":
        self.transport.write(data)
        return self

    async def drain(self) -> None:
        """Wait until the server has taken most of what was sent, or the connection ends."""
        await self._has_room.wait()

    def half_close(self) -> "Wire":
        """Send FIN and keep reading."""
        self.transport.write_eof()
        return self

    def reset(self) -> None:
        """Send RST."""
        reset_on_close(self.transport.get_extra_info("socket"))
        self.transport.abort()

    async def answer(self, *, to_head: bool = False) -> Answer:
        """Read the next whole response. Raises EOFError if the connection ends before it."""
        found = await self._when(
            lambda: first_answer(self.received, to_head=to_head, ended=self.is_closed)
        )
        if found is None:
            raise EOFError
        answer, self.received = found
        return answer

    async def until(self, part: bytes) -> None:
        """Wait until `part` has come. Raises EOFError if the connection ends before it."""
        if not await self._when(lambda: part in self.received or None):
            raise EOFError

    async def take(self) -> bytes:
        """Wait for bytes and take them all; empty after the connection's end."""
        await self._when(lambda: self.received or None)
        taken, self.received = self.received, b""
        return taken

    async def until_closed(self, *, within: float = PATIENCE_S) -> bytes:
        """Wait until the server closes the connection; return what came before."""
        await self._when(lambda: None, within)
        return self.received

    async def _when(self, found: Callable[[], T | None], within: float = PATIENCE_S) -> T | None:
        """Wait until `found` finds something or the connection ends."""
        async with asyncio.timeout(within):
            while (result := found()) is None and not self.is_closed:
                self._news.clear()
                await self._news.wait()
        return found() if result is None else result


@contextlib.asynccontextmanager
async def connected(
    address: tuple[str, int], context: ssl.SSLContext | None = None, *, receive_buffer: int = 0
) -> AsyncIterator[Wire]:
    """Yield a connection, over TLS if there is a `context`. Closes it at the end."""
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, address)
    name = "localhost" if context else None
    _, wire = await loop.create_connection(Wire, sock=raw, ssl=context, server_hostname=name)
    try:
        yield wire
    finally:
        if not wire.is_closed:
            wire.transport.abort()
