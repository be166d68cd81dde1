"""One HTTP/1.1 request and its response, on its own socket, without a client library.

In: a request's bytes. Out: the response's head, its body as it comes, and how it ended. It is cheap
enough for thousands at once, and can stop reading or leave by FIN or RST at any time. It knows
nothing about events.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

from tests.faults.history import How
from tests.faults.proxy import Address, CloseKind
from tests.support.raw import reset_on_close


class Head(NamedTuple):
    """A response's head."""

    status: int
    headers: dict[str, str]


class Exchange(Protocol):
    """A request and its response, on a connection of its own or on a stream of HTTP/2."""

    head: asyncio.Future[Head | None]
    ended: asyncio.Future[How]
    num_bytes: int

    def leave(self, how: CloseKind = "FIN") -> None: ...

    def stop_reading(self) -> None: ...

    def read_on(self) -> None: ...

    @property
    def socket(self) -> socket.socket: ...


class Send(Protocol):
    """Sends a request. Raises OSError if nothing listens."""

    async def __call__(
        self,
        address: Address,
        request: bytes,
        on_body: Callable[[bytes], None],
        *,
        receive_buffer: int = 0,
        source: str = "",
    ) -> Exchange: ...


class ClientRequest(asyncio.Protocol):
    """A request on its own connection.

    `head` resolves to the response's head, or to None if none came, and `ended` to how the response
    ended. `on_body` gets the body's bytes as they come, without the framing of chunks.
    """

    def __init__(self, request: bytes, on_body: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        self.head: asyncio.Future[Head | None] = loop.create_future()
        self.ended: asyncio.Future[How] = loop.create_future()
        self.num_bytes = 0
        """The bytes received so far, including the head and the framing of chunks."""
        self._request = request
        self._on_body = on_body
        self._take: Callable[[], bool] = self._take_head
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._left = 0

    # Actions of the client.

    def leave(self, how: CloseKind = "FIN") -> None:
        """Leave. The kernel sends RST even for a FIN if unread bytes are left."""
        self._end("left")
        if self._transport is not None:
            if how == "RST":
                reset_on_close(self.socket)
            self._transport.abort()

    def half_close(self) -> None:
        """Send FIN and keep reading."""
        assert self._transport is not None
        self._transport.write_eof()

    def stop_reading(self) -> None:
        """Stop reading, so that the kernel's buffers fill up."""
        assert self._transport is not None
        self._transport.pause_reading()

    def read_on(self) -> None:
        """Resume reading."""
        assert self._transport is not None
        self._transport.resume_reading()

    @property
    def socket(self) -> socket.socket:
        """The socket, for questions such as its port."""
        assert self._transport is not None
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit it
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.num_bytes += len(data)
        if self.ended.done():
            return
        self._buffer += data
        while self._take():
            pass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end("cut")

    # Each `_take_*` takes one part of the response from the buffer, if it is complete.

    def _take_head(self) -> bool:
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self._buffer = rest
        if headers.get("transfer-encoding") == "chunked":
            self._take = self._take_size
        else:
            self._left = int(headers.get("content-length", "0"))
            self._take = self._take_rest
        if not self.head.done():
            self.head.set_result(Head(int(first.split(" ")[1]), headers))
        return True

    def _take_rest(self) -> bool:
        data, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(data)
        if data:
            self._on_body(data)
        if not self._left:
            self._end("whole")
        return False

    def _take_size(self) -> bool:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        self._buffer = rest
        self._left = int(line.partition(b";")[0], 16)
        self._take = self._take_chunk if self._left else self._take_last
        return True

    def _take_chunk(self) -> bool:
        # Take incomplete chunks too: a client that is cut had the bytes before the cut.
        if not self._buffer:
            return False
        data, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(data)
        if not self._left:
            self._take = self._take_chunk_end
        self._on_body(data)
        return not self.ended.done()

    def _take_chunk_end(self) -> bool:
        if len(self._buffer) < 2:
            return False
        self._buffer = self._buffer[2:]
        self._take = self._take_size
        return True

    def _take_last(self) -> bool:
        if self._buffer[:2] == b"\r\n":
            self._end("whole")
        return False

    def _end(self, how: How) -> None:
        if not self.ended.done():
            self.ended.set_result(how)
        if not self.head.done():
            self.head.set_result(None)
        if how == "whole" and self._transport is not None:
            self._transport.close()


def request_bytes(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """Build a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def send_request(
    address: Address,
    request: bytes,
    on_body: Callable[[bytes], None],
    *,
    receive_buffer: int = 0,
    source: str = "",
) -> ClientRequest:
    """Connect and send a request. Raises OSError if nothing listens.

    `receive_buffer` bounds the bytes that the kernel accepts for a client that does not read.
    `source` is the client's own address (each address has some 28,000 ports).
    """
    loop = asyncio.get_running_loop()
    raw = socket.socket()
    try:
        raw.setblocking(False)
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            raw.bind((source, 0))
        await loop.sock_connect(raw, address)
        _, protocol = await loop.create_connection(
            lambda: ClientRequest(request, on_body), sock=raw
        )
    except BaseException:
        raw.close()
        raise
    return protocol


async def fetch(
    address: Address, request: bytes, *, send: Send = send_request, **options: int | str
) -> tuple[Head, bytes]:
    """Send a request and return the whole response. Raises ConnectionError if it is cut."""
    body: list[bytes] = []
    receive_buffer, source = int(options.get("receive_buffer", 0)), str(options.get("source", ""))
    answer = await send(address, request, body.append, receive_buffer=receive_buffer, source=source)
    head, how = await answer.head, await answer.ended
    if head is None or how != "whole":
        raise ConnectionResetError("the response was cut")
    return head, b"".join(body)
