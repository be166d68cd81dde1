"""HTTPS: both versions of HTTP, renewed certificates, and connections without TLS."""

import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import h2.config
import h2.connection
import h2.events
import httpx
import psutil
import pytest
import trustme

from penstock.web.granian import HEADER_TIMEOUT_S
from tests.support.raw import request
from tests.support.servers import RunningServer, refuses_to_start, serve
from tests.support.waiting import eventually

AUTHORITY = trustme.CA()
HEALTH = request("GET", "/health")

Read = TypeVar("Read")


class Certificate:
    """A certificate for localhost, in two files."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.renew()

    def renew(self) -> None:
        issued = AUTHORITY.issue_cert("localhost", "127.0.0.1")
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def flags(self) -> dict[str, Path]:
        return {"tls_cert": self.certificate, "tls_key": self.key}


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


@pytest.fixture
def server(certificate: Certificate) -> Iterator[RunningServer]:
    with serve(
        engine="mock", mock_interval=0.05, engine_arg=["length=1000"], **certificate.flags()
    ) as server:
        assert server.url.startswith("https://")
        yield server


def context() -> ssl.SSLContext:
    made = ssl.create_default_context()
    AUTHORITY.configure_trust(made)
    return made


@contextlib.contextmanager
def connected(server: RunningServer, *protocols: str) -> Iterator[ssl.SSLSocket]:
    trusting = context()
    trusting.set_alpn_protocols(protocols)
    with (
        socket.create_connection(server.address, timeout=20) as raw,
        trusting.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        yield secure


def client_of(http2: bool) -> httpx.Client:
    return httpx.Client(verify=context(), http1=not http2, http2=http2, timeout=30)


def serial(server: RunningServer) -> str:
    """Return the serial number of the certificate that a new connection gets."""
    with connected(server, "http/1.1") as secure:
        shown = secure.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("path", ["/health", "/generate", "/nope"])
def test_an_answer_to_head_has_no_body(server: RunningServer, path: str, http2: bool) -> None:
    with client_of(http2) as client:
        for _ in range(2):  # the connection is used again
            answer = client.head(server.url + path)
            assert answer.content == b""
            assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_a_stream_over_tls(server: RunningServer, http2: bool) -> None:
    with client_of(http2) as client:
        sent = {"prompt": "x", "max_tokens": 3}
        answer = client.post(f"{server.url}/generate", json=sent)
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert answer.text.count("data: ") == 4


def test_a_client_is_asked_which_version_it_wants(server: RunningServer) -> None:
    for offered, chosen in (
        (("h2", "http/1.1"), "h2"),
        (("http/1.1",), "http/1.1"),
        (("http/1.1", "h2"), "h2"),
    ):
        with connected(server, *offered) as secure:
            assert secure.selected_alpn_protocol() == chosen


def test_old_versions_of_tls_are_refused(server: RunningServer) -> None:
    old = context()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(server.address) as raw, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(raw, server_hostname="localhost")


def test_plain_http_is_not_answered(server: RunningServer) -> None:
    with socket.create_connection(server.address, timeout=20) as raw:
        raw.sendall(HEALTH)
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in raw.recv(1000)


def test_a_new_certificate_is_shown_and_streams_go_on(
    server: RunningServer, certificate: Certificate
) -> None:
    before = serial(server)
    with httpx.Client(verify=context(), timeout=30) as client:
        sent = {"prompt": "x", "max_tokens": 120}  # six seconds
        with client.stream("POST", f"{server.url}/generate", json=sent) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            certificate.renew()
            assert eventually(lambda: serial(server) != before, 20)
            rest = list(lines)
    assert sum(line.startswith("data: ") for line in rest) == 120
    assert '"finish_reason":"length"' in rest[-2]


class HalfwayHandshake:
    """A client that has sent half of its first message, on a connection that was accepted."""

    def __init__(self, server: RunningServer) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context().wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        hello = self._outgoing.read()
        self._rest = hello[20:]
        self._raw = socket.create_connection(server.address, timeout=20)
        self._raw.sendall(hello[:20])
        own = self._raw.getsockname()
        assert eventually(
            lambda: own in (each.raddr for each in psutil.Process(server.pid).net_connections())
        )

    def __enter__(self) -> "HalfwayHandshake":
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def _read(self, step: Callable[[], Read]) -> Read:
        """Return what `step` returns when it has read enough."""
        while True:
            self._raw.sendall(self._outgoing.read())
            try:
                return step()
            except ssl.SSLWantReadError:
                received = self._raw.recv(65536)
                assert received, "the connection was cut off"
                self._incoming.write(received)

    def finish(self) -> str:
        """Send the rest, and return the serial number of the certificate that was shown."""
        self._raw.sendall(self._rest)
        self._read(self._tls.do_handshake)
        return str((self._tls.getpeercert() or {})["serialNumber"])

    def ask(self) -> bytes:
        """Return the beginning of the answer to a request."""
        self._tls.write(HEALTH)
        return self._read(lambda: self._tls.read(100))


def test_a_new_certificate_cuts_off_no_connection_that_has_asked_nothing_yet(
    server: RunningServer, certificate: Certificate
) -> None:
    """Regression: Granian, stopped, cut off each handshake that was under way, and each connection
    between its handshake and its first request."""
    before = serial(server)
    with HalfwayHandshake(server) as halfway, connected(server, "http/1.1") as silent:
        certificate.renew()
        assert eventually(lambda: serial(server) != before, 20)
        assert halfway.finish() == before
        assert halfway.ask().startswith(b"HTTP/1.1 200 ")
        silent.sendall(HEALTH)
        assert silent.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_certificate_that_is_broken_changes_nothing(
    server: RunningServer, certificate: Certificate
) -> None:
    before = serial(server)
    certificate.key.write_text("broken")
    assert eventually(lambda: "keeping the old certificate" in "".join(server.output), 20)
    assert serial(server) == before
    certificate.renew()
    assert eventually(lambda: serial(server) != before, 20)


def test_the_server_ends_while_connections_of_two_certificates_are_open(
    server: RunningServer, certificate: Certificate
) -> None:
    before = serial(server)
    with connected(server, "http/1.1") as old:
        certificate.renew()
        assert eventually(lambda: serial(server) != before, 20)
        with connected(server, "h2"):
            server.process.terminate()
            assert server.process.wait(20) == 0
        with contextlib.suppress(ConnectionError):
            assert old.recv(10) == b""


def test_clients_that_only_keep_connections_open_do_not_hold_the_server_up(
    certificate: Certificate,
) -> None:
    """Regression: an HTTP/2 client that has its answer and no longer listens held the server until
    the drain timeout, at every restart behind a pool of connections. Now the server closes all
    connections soon after the last answer."""
    with (
        serve(engine="mock", drain_timeout=600, **certificate.flags()) as server,
        httpx.Client(verify=context(), http2=True, timeout=20) as client,
        connected(server, "http/1.1") as half,
    ):
        half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert client.get(f"{server.url}/health").http_version == "HTTP/2"
        server.signal(signal.SIGTERM)
        assert server.process.wait(2 * HEADER_TIMEOUT_S) == 0
    assert not [line for line in server.output if "WARNING" in line or "ERROR" in line]


def test_a_handshake_that_never_comes_and_a_head_that_stops_are_given_up(
    server: RunningServer,
) -> None:
    began = time.monotonic()
    with (
        socket.create_connection(server.address, timeout=30) as silent,
        socket.create_connection(server.address, timeout=30) as halfway,
        connected(server, "http/1.1") as head,
    ):
        halfway.sendall(bytes.fromhex("16030102000100"))
        head.settimeout(30)
        head.sendall(b"GET / HTTP/1.1\r\nHost:")
        answer = head.recv(1000)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")
        assert silent.recv(100) == halfway.recv(100) == b""
    assert HEADER_TIMEOUT_S - 2 < time.monotonic() - began < 25


def test_headers_of_http2_are_bounded_as_well(server: RunningServer) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    heads = [(":method", "GET"), (":path", "/health"), (":authority", "localhost")]
    heads += [(":scheme", "https"), *((f"x-{n}", "y" * 8000) for n in range(20))]
    with connected(server, "h2") as secure:
        secure.sendall(client.data_to_send())
        client.receive_data(secure.recv(65536))
        client.send_headers(1, heads, end_stream=True)
        secure.sendall(client.data_to_send())
        statuses: list[bytes] = []
        over = False
        while not over:
            received = secure.recv(65536)
            over = not received
            for event in client.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses += [value for name, value in event.headers or () if name == b":status"]
                over |= isinstance(
                    event,
                    h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated,
                )
    assert statuses in ([b"431"], [])


@pytest.mark.parametrize("case", ["only one", "no file", "no pair"])
def test_unusable_tls_files_are_explained_at_start(
    certificate: Certificate, tmp_path: Path, case: str
) -> None:
    flags: dict[str, object] = dict(certificate.flags())
    if case == "only one":
        del flags["tls_key"]
    elif case == "no file":
        flags["tls_key"] = tmp_path / "nothing.pem"
    else:
        other = tmp_path / "other"
        other.mkdir()
        flags["tls_key"] = Certificate(other).key
    assert "--tls-cert" in refuses_to_start(engine="mock", **flags)
