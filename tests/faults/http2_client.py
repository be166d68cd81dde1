"""Many requests on one HTTP/2 connection over TLS, in the place of `client_request`'s connections.

In: a request's bytes as in HTTP/1.1. Out: the same as there. A request that stops reading gives the
server no more room on its stream, and one that leaves resets its stream; the others go on.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from tests.faults.client_request import Head
from tests.faults.history import How
from tests.faults.proxy import Address, CloseKind

WINDOW = 65_535
"""The bytes that a server may send on a stream before the client has read any."""
_HEAD_LENGTH, _GOAWAY = 9, 7


class Http2Request:
    """A request on a stream of a connection. See `ClientRequest` for what both have."""

    def __init__(
        self, connection: "Connection", stream: int, on_body: Callable[[bytes], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.head: asyncio.Future[Head | None] = loop.create_future()
        self.ended: asyncio.Future[How] = loop.create_future()
        self.num_bytes = 0
        """The body's bytes received so far, read or not."""
        self.full = asyncio.Event()
        """Set when this client has stopped reading and the server may send no more."""
        self.stream = stream
        self._connection = connection
        self._on_body = on_body
        self._is_reading = True
        self._unread: list[bytes] = []

    def leave(self, how: CloseKind = "RST") -> None:
        """Reset the stream: in HTTP/2 a client can leave in no other way."""
        self.end("left")
        self._connection.reset(self.stream)

    def stop_reading(self) -> None:
        """Stop reading, so that the stream's window fills up."""
        self._is_reading = False

    def read_on(self) -> None:
        """Resume reading."""
        self._is_reading = True
        unread, self._unread = self._unread, []
        for data in unread:
            self._read(data)

    @property
    def socket(self) -> socket.socket:
        """The socket of the connection, which other requests share."""
        return self._connection.socket

    def take(self, data: bytes) -> None:
        """Take a part of the body."""
        self.num_bytes += len(data)
        if self._is_reading:
            self._read(data)
            return
        self._unread.append(data)
        if sum(map(len, self._unread)) == WINDOW:
            self.full.set()

    def _read(self, data: bytes) -> None:
        self._connection.give_room(self.stream, len(data))
        self._on_body(data)

    def end(self, how: How) -> None:
        """Note how the response ended."""
        if not self.ended.done():
            self.ended.set_result(how)
        if not self.head.done():
            self.head.set_result(None)


class Connection(asyncio.Protocol):
    """A connection with its open requests."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(header_encoding="latin-1")
        self.is_over = False
        """True if the server takes no more requests on this connection."""
        self._h2 = h2.connection.H2Connection(config)
        self._requests: dict[int, Http2Request] = {}
        self._unparsed = b""
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def socket(self) -> socket.socket:
        """The socket, for questions such as its port."""
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    def request(self, request: bytes, on_body: Callable[[bytes], None]) -> Http2Request:
        """Send a request."""
        headers, body = _headers_of(request)
        stream = self._h2.get_next_available_stream_id()
        made = self._requests[stream] = Http2Request(self, stream, on_body)
        self._h2.send_headers(stream, headers, end_stream=not body)
        if body:
            self._h2.send_data(stream, body, end_stream=True)
        self._flush()
        return made

    def reset(self, stream: int) -> None:
        """Take a request back."""
        if self._requests.pop(stream, None) is not None and not self._transport.is_closing():
            self._h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            self._flush()

    def give_room(self, stream: int, length: int) -> None:
        """Let the server send so many more bytes on a stream."""
        # h2 closes a stream as soon as it has parsed its end, with data that we have not seen yet.
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self._h2.increment_flow_control_window(length, stream)
            self._flush()

    async def close(self) -> None:
        """Close the connection, and wait until its socket is closed."""
        self._transport.abort()
        await self._lost

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit it
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(16 * WINDOW)  # for what comes on reset streams
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(self._without_goaway(data)):
            self._on_event(event)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self._end_those_after(0)
        self._lost.set_result(None)

    # Frames.

    def _on_event(self, event: h2.events.Event) -> None:
        request = self._requests.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
            # Only the stream's window stops a server, never the connection's.
            self._h2.increment_flow_control_window(event.flow_controlled_length)
        if request is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            headers = {str(name): str(value) for name, value in event.headers or ()}
            request.head.set_result(Head(int(headers.pop(":status")), headers))
        elif isinstance(event, h2.events.DataReceived) and event.data:
            request.take(event.data)
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            del self._requests[request.stream]
            request.end("whole" if isinstance(event, h2.events.StreamEnded) else "cut")

    def _without_goaway(self, data: bytes) -> bytes:
        """Take GOAWAY out: after it, h2 would refuse what comes on streams that are still open."""
        self._unparsed += data
        kept = b""
        while len(self._unparsed) >= _HEAD_LENGTH:
            end = _HEAD_LENGTH + int.from_bytes(self._unparsed[:3])
            if len(self._unparsed) < end:
                break
            frame, self._unparsed = self._unparsed[:end], self._unparsed[end:]
            if frame[3] == _GOAWAY:
                self.is_over = True
                self._end_those_after(int.from_bytes(frame[_HEAD_LENGTH : _HEAD_LENGTH + 4]))
            else:
                kept += frame
        return kept

    def _end_those_after(self, last: int) -> None:
        for stream in [each for each in self._requests if each > last]:
            self._requests.pop(stream).end("cut")

    def _flush(self) -> None:
        self._transport.write(self._h2.data_to_send())


class Http2Client:
    """Sends requests to an address on one connection, and on a new one when that is over."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.num_connections = 0
        """How many connections this client has made."""
        self._context = context
        self._connections: dict[Address, Connection] = {}
        self._replaced: list[Connection] = []
        self._connecting = asyncio.Lock()

    async def send(
        self,
        address: Address,
        request: bytes,
        on_body: Callable[[bytes], None],
        *,
        receive_buffer: int = 0,
        source: str = "",
    ) -> Http2Request:
        """Send a request. Raises OSError if nothing listens."""
        async with self._connecting:
            connection = self._connections.get(address)
            if connection is None or connection.is_over:
                if connection is not None:
                    self._replaced.append(connection)  # its open requests go on
                connection = self._connections[address] = await self._connect(address)
        return connection.request(request, on_body)

    async def _connect(self, address: Address) -> Connection:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(
            Connection, *address, ssl=self._context
        )
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        self.num_connections += 1
        return connection

    async def close(self) -> None:
        """Close all connections."""
        for each in (*self._connections.values(), *self._replaced):
            await each.close()


def _headers_of(request: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """Return the headers that HTTP/2 has for a request in HTTP/1.1, and its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    pairs = [line.partition(": ") for line in lines]
    fields = {name.lower(): value for name, _, value in pairs}
    pseudo = {":method": method, ":scheme": "https", ":authority": fields.pop("host")}
    return [*pseudo.items(), (":path", path), *fields.items()], body
