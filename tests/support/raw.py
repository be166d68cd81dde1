"""HTTP without a client library: tests send bytes and parse the answer by hand.

So a test can cut, reset or half-close a connection, leave it unread, or send nonsense, at any byte.
"""

import contextlib
import json
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

OURS = (b": ping", b": queue position=", b": status ", b"id: ", b"retry: ")
RETRY = re.compile(rb"retry: ([0-9]+)\n")
PATIENCE_S = 60.0
"""The longest wait for a socket: a test that would hang fails instead."""


@dataclass
class Response:
    """A response's head, and its body if `Connection.response` read it."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


def reset_on_close(connection: socket.socket) -> None:
    """Make the socket's close send RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Connection:
    """A TCP connection. Reads raise EOFError after a FIN, and ConnectionError after an RST."""

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        receive_buffer: int = 0,
        patience: float = PATIENCE_S,
        source: str = "",
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Connect, from the address `source` if it is given, and over TLS if there is `context`."""
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(patience)
        try:
            if source:
                self.socket.bind((source, 0))
            self.socket.connect((host, port))
            if context is not None:
                self.socket = context.wrap_socket(self.socket)
        except OSError:
            self.socket.close()
            raise
        self._buffer = b""
        self._is_chunked = False
        self._length = 0

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> "Connection":
        self.socket.sendall(data)
        return self

    # Two ways for a client to leave, and one to stay.

    def close(self) -> None:
        """Send FIN; the kernel answers later data with RST."""
        self.socket.close()

    def reset(self) -> None:
        """Send RST."""
        reset_on_close(self.socket)
        self.socket.close()

    def half_close(self) -> None:
        """Send FIN and keep reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self._buffer += data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def head(self) -> Response:
        """Read the next response's head."""
        status = int(self._line().split(b" ", 2)[1])
        headers = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        self._is_chunked = headers.get("transfer-encoding") == "chunked"
        self._length = int(headers.get("content-length", "0"))
        return Response(status, headers)

    def chunk(self) -> bytes:
        """Read the next chunk, which the server wrote in one piece; empty at the body's end."""
        data = self._exactly(int(self._line(), 16))
        self._line()
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield the body's chunks."""
        while data := self.chunk():
            yield data

    def rest(self) -> bytes:
        """Read the rest of the body."""
        return b"".join(self.chunks())

    def response(self) -> Response:
        """Read the next response, including its body."""
        response = self.head()
        response.body = self.rest() if self._is_chunked else self._exactly(self._length)
        return response

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the parsed data of each event until the body ends."""
        rest = b""
        for data in self.chunks():
            *frames, rest = (rest + data).split(b"\n\n")
            for frame in frames:
                yield _data_of(frame)
        assert rest == b"", "the stream ended within a frame"

    def until_closed(self) -> bytes:
        """Return everything that comes before the server's FIN."""
        with contextlib.suppress(EOFError):
            while True:
                self._more()
        return self._buffer

    def is_closed(self) -> bool:
        """Drop what the server sends until it closes by FIN or RST, then return True."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._buffer = b""
                self._more()
        return True


WAYS_TO_GO: dict[str, Callable[[Connection], None]] = {
    "FIN": Connection.close,
    "RST": Connection.reset,
}


def _data_of(frame: bytes) -> Any:
    """Return the parsed data of a frame, which may hold no other lines than Penstock's."""
    *before, data = frame.split(b"\n")
    assert all(line.startswith(OURS) for line in before), frame
    assert data.startswith(b"data: "), frame
    return json.loads(data[6:])


def request(method: str, path: str, *headers: str) -> bytes:
    """Build a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post(body: bytes, *headers: str, path: str = "/generate") -> bytes:
    """Build a POST of JSON."""
    return (
        request(
            "POST", path, "Content-Type: application/json", f"Content-Length: {len(body)}", *headers
        )
        + body
    )


def generate(prompt: str = "Hello", **fields: object) -> bytes:
    """Build a request to `/generate`."""
    return post(json.dumps({"prompt": prompt, **fields}).encode())


def ask(port: int, data: bytes, host: str = "127.0.0.1") -> Response:
    """Send a request on a new connection and read the whole response."""
    with Connection(port, host) as connection:
        return connection.send(data).response()


def open_stream(
    port: int, data: bytes, context: ssl.SSLContext | None = None
) -> tuple[Connection, str]:
    """Open a stream and read its head. Returns the connection and the stream's id."""
    connection = Connection(port, context=context).send(data)
    head = connection.head()
    if head.status != 200:
        with connection:
            raise AssertionError((head.status, connection._exactly(connection._length)))
    return connection, head.headers["x-stream-id"]


def resume(port: int, stream_id: str, *headers: str, query: str = "") -> Response:
    """Read a stream to its end on a new connection."""
    return ask(port, request("GET", f"/streams/{stream_id}{query}", *headers))


def cancel_stream(port: int, stream_id: str, *headers: str) -> str:
    """DELETE a stream; return the finish reason that the answer names."""
    answer = ask(port, request("DELETE", f"/streams/{stream_id}", *headers))
    assert answer.status == 200
    reason = answer.json()["finish_reason"]
    assert answer.json() == {"id": stream_id, "finish_reason": reason}
    return str(reason)


def frames_of(body: bytes) -> list[bytes]:
    """Split a body into its frames, without the `retry` field before the first."""
    body = RETRY.sub(b"", body, count=1)
    return [frame + b"\n\n" for frame in body.split(b"\n\n") if frame]


def text_of(events: list[dict[str, Any]]) -> str:
    """Join the text of a native stream's events."""
    return "".join(event["token"] for event in events)
