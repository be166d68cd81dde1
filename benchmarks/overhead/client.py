"""A client with as little overhead as Python allows: one epoll, raw sockets, counted bytes.

It does not parse events: an event ends with an empty line, so it counts those.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Iterator

from tests.support.raw import post

HEAD_END = b"\r\n\r\n"
EVENT_END = b"\n\n"
PATIENCE_S = 60.0
WARM_STREAMS = 200
LOCKSTEP_TOKENS = 256


def request(path: str, fields: dict[str, object], connection: str = "keep-alive") -> bytes:
    """Return a POST request for a stream."""
    body = json.dumps({"prompt": "x", "stream": True, **fields}).encode()
    return post(body, f"Connection: {connection}", path=path)


class ClientStreams:
    """`num` open streams, each on its own connection, with their heads already read.

    `event_end`: the bytes that end an event.
    """

    def __init__(self, port: int, num: int, data: bytes, event_end: bytes = EVENT_END) -> None:
        self._event_end = event_end
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for index in range(num):
            connection = socket.socket()
            # One source address has too few ports for all the streams.
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
        while HEAD_END not in data:  # byte by byte, so that the body stays in the socket
            byte = connection.recv(1)
            if not byte:
                raise ConnectionError(data.decode("latin-1"))
            data += byte
        if not data.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(data.decode("latin-1"))

    def receive(self, num_events: int) -> None:
        """Wait until `num_events` events have arrived, over all streams."""
        seen = 0
        while seen < num_events:
            for data in self._ready():
                seen += data.count(self._event_end)

    def lockstep(self, step: str, num_steps: int) -> float:
        """Have the engine that listens at `step` make steps, and return the seconds they took.

        Each step begins when all streams have received the tokens of the step before.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stepper:
            stepper.connect(step)
            began = time.perf_counter()
            for _ in range(num_steps):
                stepper.send(b"step")
                self.receive(len(self._sockets))
            return time.perf_counter() - began

    def free(self, step: str) -> float:
        """Have the engine that listens at `step` begin, and read until every connection is closed.

        Returns the seconds that it took.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stepper:
            stepper.connect(step)
            began = time.perf_counter()
            stepper.send(b"step")
            num_open = len(self._sockets)
            while num_open:
                num_open -= sum(not data for data in self._ready())
            return time.perf_counter() - began

    def each_piece(self, until: Callable[[], bool], take: Callable[[bytes], None]) -> None:
        """Call `take` with each received piece, until `until()` is true."""
        while not until():
            for data in self._ready():
                take(data)

    def _ready(self) -> Iterator[bytes]:
        ready = self._epoll.poll(PATIENCE_S)
        if not ready:
            raise TimeoutError(f"nothing arrived for {PATIENCE_S:g} s")
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


def kib_per_stream(
    port: int, rss: Callable[[], int], data: bytes, num_streams: int, event_end: bytes = EVENT_END
) -> float:
    """Return by how many KiB `rss` (in bytes) grows for each stream without tokens.

    Some streams are opened before, so that only the cost of further streams counts.
    """
    warm = ClientStreams(port, WARM_STREAMS, data, event_end)
    before = rss()
    streams = ClientStreams(port, num_streams, data, event_end)
    after = rss()
    streams.close()
    warm.close()
    return (after - before) / num_streams / 1024


def first_token(port: int, data: bytes) -> float:
    """Return the seconds from sending a request on a new connection to its first event."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.settimeout(PATIENCE_S)
        began = time.perf_counter()
        connection.sendall(data)
        received = b""
        while EVENT_END not in received:
            received += connection.recv(65536)
        return time.perf_counter() - began
