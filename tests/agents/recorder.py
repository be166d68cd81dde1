"""A proxy before a server that records every request and passes everything on.

It is also the agents' proxy for all other addresses. It refuses these requests and records whom
they were for. So nothing that an agent sends is unseen, as long as the agent uses its proxy.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
PIECE_BYTES = 65536
OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "host", "te", "upgrade"}


@dataclass(frozen=True)
class Recorded:
    """One request, and how it was answered."""

    method: str
    path: str
    body: dict[str, Any]
    """The JSON of the body; {} without one."""
    status: int
    ignored: frozenset[str]
    """The fields that the server left out."""


@dataclass
class Recorder:
    """What went through the proxy so far, in order."""

    url: str = ""
    requests: list[Recorded] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """The hosts of requests to other servers."""

    def of(self, *paths: str) -> list[Recorded]:
        """Return the POST requests to these paths."""
        return [
            each
            for each in self.requests
            if each.method == "POST" and urlsplit(each.path).path in paths
        ]


@contextlib.contextmanager
def recording(server_port: int) -> Iterator[Recorder]:
    """Yield a recorder before the server at this port, on a port of its own."""
    recorder = Recorder()

    class Handler(_Handler):
        found = recorder
        port = server_port

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        recorder.url = f"http://127.0.0.1:{proxy.server_port}"
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield recorder
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection of an agent."""

    protocol_version = "HTTP/1.1"
    found: Recorder
    port: int

    def do_CONNECT(self) -> None:
        self._refuse(self.path.rpartition(":")[0])

    def do_GET(self) -> None:
        self._pass_on()

    do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Write nothing."""

    def _refuse(self, host: str) -> None:
        self.found.others.append(host)
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _pass_on(self) -> None:
        if host := urlsplit(self.path).hostname:  # an address, not a path: for another server
            self._refuse(host)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sent = {k: v for k, v in self.headers.items() if k.lower() not in OF_ONE_CONNECTION}
        server = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        with contextlib.closing(server):
            server.request(self.command, self.path, body or None, sent)
            answer = server.getresponse()
            self._record(body, answer)
            self._send(answer)

    def _record(self, body: bytes, answer: HTTPResponse) -> None:
        ignored = answer.headers.get("X-Penstock-Ignored", "")
        names = frozenset(name for name in ignored.split(", ") if name)
        decoded = json.loads(body) if body else {}
        self.found.requests.append(Recorded(self.command, self.path, decoded, answer.status, names))

    def _send(self, answer: HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in OF_ONE_CONNECTION:
                self.send_header(name, value)
        has_length = "Content-Length" in answer.headers
        is_empty = self.command == "HEAD" or answer.status in (204, 304)
        if not (has_length or is_empty):
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if is_empty:
            return
        while piece := answer.read1(PIECE_BYTES):
            self.wfile.write(piece if has_length else b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()
        if not has_length:
            self.wfile.write(b"0\r\n\r\n")
