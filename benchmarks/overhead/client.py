"""A client that costs as little as one in Python can: one epoll, raw sockets, counted bytes.

It does not parse what it need not: an event ends with an empty line, so events are counted by it.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Iterator

HEAD_END = b"\r\n\r\n"
EVENT_END = b"\n\n"
PATIENCE_S = 60.0


def request(path: str, fields: dict[str, object], connection: str = "keep-alive") -> bytes:
    """A POST of JSON."""
    body = json.dumps({"prompt": "x", "stream": True, **fields}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Connection: {connection}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Streams:
    """`num` streams, opened and with their heads read; `receive` waits for what comes next.

    `event_end`: what an event ends with, once.
    """

    def __init__(self, port: int, num: int, data: bytes, event_end: bytes = EVENT_END) -> None:
        self._event_end = event_end
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for index in range(num):
            connection = socket.socket()
            # More clients than one address has ports for.
            connection.bind((f"127.0.0.{2 + index // 20_000}", 0))
            connection.connect(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(data)
            self._sockets[connection.fileno()] = connection
        for connection in self._sockets.values():
            self._read_head(connection)
        for descriptor, connection in self._sockets.items():
            connection.setblocking(False)
            self._epoll.register(descriptor, select.EPOLLIN)

    @staticmethod
    def _read_head(connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        data = b""
        while HEAD_END not in data:  # byte by byte: what follows the head stays in the socket
            byte = connection.recv(1)
            if not byte:
                raise ConnectionError(data.decode("latin-1"))
            data += byte
        if not data.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(data.decode("latin-1"))

    def receive(self, num_events: int) -> None:
        """Wait until so many events have come, over all streams."""
        seen = 0
        while seen < num_events:
            for data in self._ready():
                seen += data.count(self._event_end)

    def lockstep(self, step: str, num_steps: int) -> float:
        """Have the engine that listens at `step` make so many steps, each when all have the tokens
        of the one before. Returns the seconds that they took."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stepper:
            stepper.connect(step)
            began = time.perf_counter()
            for _ in range(num_steps):
                stepper.send(b"step")
                self.receive(len(self._sockets))
            return time.perf_counter() - began

    def free(self, step: str) -> float:
        """Have the engine that listens at `step` begin, and read until every connection is closed.
        Returns the seconds that it took."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stepper:
            stepper.connect(step)
            began = time.perf_counter()
            stepper.send(b"step")
            num_open = len(self._sockets)
            while num_open:
                num_open -= sum(not data for data in self._ready())
            return time.perf_counter() - began

    def each_piece(self, until: Callable[[], bool], take: Callable[[bytes], None]) -> None:
        """Give `take` whatever comes, in pieces as it comes, until `until`."""
        while not until():
            for data in self._ready():
                take(data)

    def _ready(self) -> Iterator[bytes]:
        ready = self._epoll.poll(PATIENCE_S)
        if not ready:
            raise TimeoutError("nothing came")
        for descriptor, _ in ready:
            data = self._sockets[descriptor].recv(65536)
            if not data:
                self._epoll.unregister(descriptor)
            yield data

    def close(self) -> None:
        """Close every connection."""
        for connection in self._sockets.values():
            connection.close()
        self._epoll.close()


def first_token(port: int, data: bytes) -> float:
    """Seconds from sending a request on a new connection to the first event's end."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.settimeout(PATIENCE_S)
        began = time.perf_counter()
        connection.sendall(data)
        received = b""
        while EVENT_END not in received:
            received += connection.recv(65536)
        return time.perf_counter() - began
