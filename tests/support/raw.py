"""HTTP as it is on the wire: what a test sends are bytes, what it reads is read by hand.

No client library stands between, so that a connection can be cut, reset, half-closed, left unread
or fed nonsense, at any byte.
"""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OURS = (b": ping", b": queue position=", b"id: ", b"retry: ")
PATIENCE_S = 20.0
"""No wait is longer: a test that would hang fails instead."""


@dataclass
class Response:
    """A response's head, and its body where it was read whole."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One TCP connection. A closed peer reads as EOFError, a reset one as ConnectionError."""

    def __init__(self, port: int, *, receive_buffer: int = 0, patience: float = PATIENCE_S) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(patience)
        self.socket.connect(("127.0.0.1", port))
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

    # Three ways for a client to go.

    def close(self) -> None:
        """FIN; what still comes is answered with RST by the kernel."""
        self.socket.close()

    def reset(self) -> None:
        """RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self) -> None:
        """FIN, while still reading."""
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
        """The next response's head."""
        status = int(self._line().split(b" ", 2)[1])
        headers = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        self._is_chunked = headers.get("transfer-encoding") == "chunked"
        self._length = int(headers.get("content-length", "0"))
        return Response(status, headers)

    def chunk(self) -> bytes:
        """The next chunk of the body: what the server wrote in one piece. Empty at the end."""
        data = self._exactly(int(self._line(), 16))
        self._line()
        return data

    def chunks(self) -> Iterator[bytes]:
        """The body's chunks."""
        while data := self.chunk():
            yield data

    def response(self) -> Response:
        """The next response, whole."""
        response = self.head()
        response.body = b"".join(self.chunks()) if self._is_chunked else self._exactly(self._length)
        return response

    def events(self) -> Iterator[dict[str, Any]]:
        """The data of the events of a streamed body; ends with the body."""
        rest = b""
        for data in self.chunks():
            *frames, rest = (rest + data).split(b"\n\n")
            for frame in frames:
                yield _data_of(frame)
        assert rest == b"", "the stream ended within a frame"

    def until_closed(self) -> bytes:
        """All that comes until the server closes by FIN."""
        with contextlib.suppress(EOFError):
            while True:
                self._more()
        return self._buffer

    def is_closed(self) -> bool:
        """Wait until the server closes, by FIN or RST; what it sends until then is dropped."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._buffer = b""
                self._more()
        return True


def _data_of(frame: bytes) -> Any:
    """What one frame says; comments and fields but `data` are skipped, and are none but ours."""
    *before, data = frame.split(b"\n")
    assert all(line.startswith(OURS) for line in before), frame
    assert data.startswith(b"data: "), frame
    return json.loads(data[6:])


def request(method: str, path: str, *headers: str) -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post(body: bytes, *headers: str, path: str = "/generate") -> bytes:
    """A POST of JSON."""
    return (
        request(
            "POST", path, "Content-Type: application/json", f"Content-Length: {len(body)}", *headers
        )
        + body
    )


def generate(prompt: str = "Hello", **fields: object) -> bytes:
    """A request to generate."""
    return post(json.dumps({"prompt": prompt, **fields}).encode())


def ask(port: int, data: bytes) -> Response:
    """Send on a connection of its own and read the response whole."""
    with Connection(port) as connection:
        return connection.send(data).response()


def open_stream(port: int, data: bytes) -> tuple[Connection, str]:
    """Ask for a stream and read its head: the connection, to be read on, and the stream's id."""
    connection = Connection(port).send(data)
    head = connection.head()
    assert head.status == 200, connection._exactly(connection._length)
    return connection, head.headers["x-stream-id"]
