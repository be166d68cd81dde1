"""A client with as little overhead as Python allows: one epoll, raw sockets, counted bytes.

It does not parse events: an event ends with an empty line, so it counts those.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.raw import post

HEAD_END = b"\r\n\r\n"
EVENT_END = b"\n\n"
BODY_END = b"0\r\n\r\n"
PATIENCE_S = 60.0
WARM_STREAMS = 200
LOCKSTEP_TOKENS = 256
REQUESTS_PER_LOOK = 16  # while the requests go out, the client reads after every 16 of them


def request(path: str, fields: dict[str, object], connection: str = "keep-alive") -> bytes:
    """Return a POST request for a stream."""
    body = json.dumps({"prompt": "x", "stream": True, **fields}).encode()
    return post(body, f"Connection: {connection}", path=path)


@dataclass(frozen=True)
class Timing:
    """The times of a lockstep run, in seconds.

    `gaps`: between two events of a stream. `latencies`: from the beginning of a step to an event,
    which includes the engine's part of the step.
    """

    seconds: float
    gaps: list[float]
    latencies: list[float]


class ClientStreams:
    """`num` open streams, each on its own connection, with their heads already read.

    All connections are open before the first request goes out; then all requests go out at once.
    `event_end`: the bytes that end an event. `eager`: each stream's first event comes without a
    step, and is read, too; `first` lists the seconds from each request to it.
    """

    def __init__(
        self,
        port: int,
        num: int,
        data: bytes,
        event_end: bytes = EVENT_END,
        *,
        eager: bool = False,
    ) -> None:
        self._event_end = event_end
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self.first: list[float] = []
        for index in range(num):
            connection = socket.socket()
            # One source address has too few ports for all the streams.
            connection.bind((f"127.0.0.{2 + index // 20_000}", 0))
            connection.connect(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)
        time.sleep(0.05 + 0.0002 * num)  # the server accepts the connections
        self._send_requests(data, int(eager))

    def _send_requests(self, data: bytes, num_events: int) -> None:
        """Send all requests, and read each response up to its head and `num_events` events."""
        sent: dict[int, float] = {}
        received = dict.fromkeys(self._sockets, b"")

        def read(patience: float) -> None:
            for descriptor, piece in self._ready(patience):
                received[descriptor] += piece
                head, is_complete, body = received[descriptor].partition(HEAD_END)
                if not piece or (is_complete and not head.startswith(b"HTTP/1.1 200")):
                    raise ConnectionError(received[descriptor].decode("latin-1"))
                if is_complete and body.count(self._event_end) >= num_events and descriptor in sent:
                    self.first.append(time.perf_counter() - sent.pop(descriptor))

        for number, (descriptor, connection) in enumerate(self._sockets.items(), 1):
            sent[descriptor] = time.perf_counter()
            connection.sendall(data)
            if number % REQUESTS_PER_LOOK == 0:
                read(0)
        while sent:
            read(PATIENCE_S)

    def lockstep(self, step: str, num_steps: int) -> Timing:
        """Have the engine that listens at `step` make steps.

        Each step begins when all streams have received the tokens of the step before.
        """
        receive = {descriptor: each.recv for descriptor, each in self._sockets.items()}
        poll, end, clock = self._epoll.poll, self._event_end, time.perf_counter
        begins: list[float] = []
        arrivals: list[tuple[int, float, int]] = []  # stream, time, step
        with stepper(step) as engine:
            for number in range(num_steps):
                missing = len(receive)
                begins.append(clock())
                engine.send(b"step")
                while missing > 0:
                    ready = poll(PATIENCE_S)
                    if not ready:
                        raise TimeoutError(f"nothing arrived for {PATIENCE_S:g} s")
                    for descriptor, _ in ready:
                        data = receive[descriptor](65536)
                        if num := data.count(end):
                            arrivals.append((descriptor, clock(), number))
                            missing -= num
                        elif not data:
                            raise ConnectionError("a stream was cut")
            ended = clock()
        last: dict[int, float] = {}
        gaps = []
        for descriptor, at, _ in arrivals:
            if descriptor in last:
                gaps.append(at - last[descriptor])
            last[descriptor] = at
        latencies = [at - begins[number] for _, at, number in arrivals]
        return Timing(ended - begins[0], gaps, latencies)

    def finish(self, step: str) -> None:
        """Have the engine make the last step, and read every response to its end."""
        tails = dict.fromkeys(self._sockets, b"")
        with stepper(step) as engine:
            engine.send(b"step")
        num_open = len(tails)
        while num_open:
            for descriptor, data in self._ready():
                tails[descriptor] = (tails[descriptor] + data)[-len(BODY_END) :]
                if tails[descriptor] == BODY_END:
                    num_open -= 1
                    self._epoll.unregister(descriptor)
                elif not data:
                    raise ConnectionError("a stream was cut")

    def free(self, step: str) -> float:
        """Have the engine that listens at `step` begin, and read until every connection is closed.

        Returns the seconds that it took.
        """
        with stepper(step) as engine:
            began = time.perf_counter()
            engine.send(b"step")
            num_open = len(self._sockets)
            while num_open:
                for descriptor, data in self._ready():
                    if not data:
                        self._epoll.unregister(descriptor)
                        num_open -= 1
            return time.perf_counter() - began

    def each_piece(self, until: Callable[[], bool], take: Callable[[bytes], None]) -> None:
        """Call `take` with each received piece, until `until()` is true."""
        while not until():
            for _, data in self._ready():
                take(data)

    def _ready(self, patience: float = PATIENCE_S) -> Iterator[tuple[int, bytes]]:
        """Yield what has arrived, with its stream. The wait is an error, unless it is 0 seconds."""
        ready = self._epoll.poll(patience)
        if patience and not ready:
            raise TimeoutError(f"nothing arrived for {PATIENCE_S:g} s")
        for descriptor, _ in ready:
            yield descriptor, self._sockets[descriptor].recv(65536)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._sockets.values():
            connection.close()
        self._epoll.close()


@contextlib.contextmanager
def stepper(step: str) -> Iterator[socket.socket]:
    """Yield a socket whose datagrams are steps of the engine that listens at `step`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as engine:
        engine.connect(step)
        yield engine


def kib_per_stream(
    port: int,
    rss: Callable[[], int],
    data: bytes,
    num_streams: int,
    event_end: bytes = EVENT_END,
    *,
    eager: bool = False,
) -> float:
    """Return by how many KiB `rss` (in bytes) grows for each silent stream.

    Some streams are opened before, so that only the cost of further streams counts.
    """
    warm = ClientStreams(port, WARM_STREAMS, data, event_end, eager=eager)
    before = rss()
    streams = ClientStreams(port, num_streams, data, event_end, eager=eager)
    after = rss()
    streams.close()
    warm.close()
    return (after - before) / num_streams / 1024


def first_token(port: int, data: bytes, end: bytes = EVENT_END) -> float:
    """Return the seconds from sending a request on a new connection to its first event.

    With `end`=BODY_END: to the end of the response.
    """
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.settimeout(PATIENCE_S)
        began = time.perf_counter()
        connection.sendall(data)
        received = b""
        while end not in received:
            piece = connection.recv(65536)
            if not piece:
                raise ConnectionError(received.decode("latin-1"))
            received += piece
        return time.perf_counter() - began
