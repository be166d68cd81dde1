"""A server that sends exactly the bytes of a script, at the moments that the script chooses.

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(b"data: ..."))
        peer.reset()

    with scripted_server(script) as server:
        Client(server.url)...

The next script answers each request, on any connection, in its own thread. After a script the
connection stays open for the next request, unless the script closed it.
"""

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.support.raw import reset_on_close

PATIENCE_S = 60.0
"""Seconds that a script may wait, so that a test fails instead of hanging."""

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"X-Stream-ID: a-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def whole(
    body: bytes, status: bytes = b"200 OK", content_type: bytes = b"application/json"
) -> bytes:
    """Return a whole response."""
    return b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        *(status, content_type, len(body)),
        body,
    )


class Peer:
    """A request and its connection."""

    def __init__(self, connection: socket.socket, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = first.split(" ")
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        self.body = body
        self._connection = connection

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._connection.sendall(piece)

    def wait_until_gone(self) -> None:
        """Wait until the client closes its side."""
        with suppress(ConnectionError):
            while self._connection.recv(4096):
                pass

    def close(self) -> None:
        with suppress(OSError):  # the client may have reset the connection
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def reset(self) -> None:
        """Close the connection with RST instead of FIN, as a crash or a firewall does."""
        reset_on_close(self._connection)
        self._connection.close()


Script = Callable[[Peer], None]


class ScriptedServer:
    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.requests: list[Peer] = []
        self.errors: list[BaseException] = []
        self._scripts: queue.SimpleQueue[Script] = queue.SimpleQueue()
        for script in scripts:
            self._scripts.put(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed: the test is over
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(PATIENCE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                while connection.fileno() >= 0 and (peer := _read(connection)) is not None:
                    self.requests.append(peer)
                    self._scripts.get_nowait()(peer)
        except ConnectionError:
            pass  # the client may leave first
        except BaseException as error:
            self.errors.append(error)


def _read(connection: socket.socket) -> Peer | None:
    """Return the next request, or None if the client is gone."""
    received = b""
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in received:
            if not (piece := connection.recv(65536)):
                return None
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        peer = Peer(connection, head, body)
        while len(peer.body) < int(peer.headers.get("content-length", 0)):
            if not (piece := connection.recv(65536)):
                return None
            peer.body += piece
        return peer
    return None


@contextmanager
def scripted_server(*scripts: Script) -> Iterator[ScriptedServer]:
    """Run a server with one script for each expected request."""
    server = ScriptedServer(scripts)
    try:
        yield server
    finally:
        server.close()
    for error in server.errors:
        raise error
