"""Real proxies, nginx and HAProxy, tell a real server who their clients are.

Without them the tests skip and say what to install; with PENSTOCK_REQUIRE_PROXIES=1, as in CI, they
fail. A client's address is the one that its socket is bound to: all of 127.0.0.0/8 is this machine.
"""

import contextlib
import re
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil
import pytest
import trustme

from tests.support.ports import free_port
from tests.support.proxies import documented, haproxy, nginx, replaced
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

PROXY, ALICE, BOB = "127.0.0.1", "127.0.0.5", "127.0.0.6"
FORGED = {"X-Forwarded-For": "203.0.113.9"}
FORGED_BOTH = {**FORGED, "Forwarded": "for=203.0.113.9"}
HOST = "models.example"
NUM_TOKENS = 40
AUTHORITY = trustme.CA()
BY_NGINX = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
CLEARED_BY_NGINX = 'proxy_set_header Forwarded "";'
PROTOCOLS = {"version 1": "send-proxy", "version 2": "send-proxy-v2"}
REUSE = "\n    http-reuse always"
TCP = """
listen clients
    mode tcp
    bind 127.0.0.1:{port}
    timeout client 60s
    timeout connect 5s
    timeout server 60s
    server one 127.0.0.1:{server} {options}
"""

SETTINGS: dict[str, object] = {
    "engine": "mock",
    "mock_interval": 0.01,
    "engine_arg": ["length=1000", "slots=1"],
    "allow_host": HOST,
}


@pytest.fixture(scope="module")
def trusting() -> Iterator[RunningServer]:
    with serve(trusted_proxy=PROXY, **SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def distrustful() -> Iterator[RunningServer]:
    with serve(**SETTINGS) as server:
        yield server


# Proxies: each yields the URL that clients use.


@contextlib.contextmanager
def documented_nginx(server: RunningServer, folder: Path, **changes: str) -> Iterator[str]:
    """Run nginx as the guide says; `changes` replaces the lines BY_NGINX and CLEARED_BY_NGINX."""
    port = free_port()
    config = replaced(documented("nginx"), "listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    config = replaced(config, "server 127.0.0.1:8000;", f"server 127.0.0.1:{server.port};")
    for name, line in (("written", BY_NGINX), ("cleared", CLEARED_BY_NGINX)):
        config = replaced(config, line, changes.get(name, line))
    write_certificates(folder)
    with nginx(folder, port, config):
        yield f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def documented_haproxy(server: RunningServer, folder: Path, more: str = "") -> Iterator[str]:
    """Run HAProxy as the guide says, with `more` behind the server's line."""
    port = free_port()
    config = replaced(documented("HAProxy"), "bind :443", f"bind 127.0.0.1:{port}")
    config = replaced(config, "server one 127.0.0.1:8000", f"server one 127.0.0.1:{server.port}")
    write_certificates(folder)
    with haproxy(folder, port, config.rstrip() + more + "\n"):
        yield f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def tcp_haproxy(
    server: RunningServer, folder: Path, options: str, *, tls: str = ""
) -> Iterator[str]:
    """Run HAProxy so that it passes bytes on; `options` are for its server, `tls` for clients."""
    port = free_port()
    write_certificates(folder)
    config = TCP.format(port=f"{port} {tls}", server=server.port, options=options)
    with haproxy(folder, port, config):
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


DOCUMENTED: dict[str, Callable[[RunningServer, Path], AbstractContextManager[str]]] = {
    "nginx": documented_nginx,
    "HAProxy": documented_haproxy,
}


def write_certificates(folder: Path) -> None:
    issued = AUTHORITY.issue_cert(HOST, "127.0.0.1")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    key = issued.private_key_pem.bytes()
    for name, content in (("cert", chain), ("key", key), ("models", chain + key)):
        (folder / f"{name}.pem").write_bytes(content)


# Clients.


def client_at(address: str, url: str, *, http2: bool = False) -> httpx.Client:
    """Return a client that keeps its connection open, and whose sockets have this address."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    transport = httpx.HTTPTransport(local_address=address, verify=context, http2=http2)
    return httpx.Client(
        transport=transport, base_url=url, headers={"Host": HOST}, timeout=20, trust_env=False
    )


def log_line(server: RunningServer, request_id: str) -> str:
    """Wait for the log line of a request."""

    def found() -> list[str]:
        return [line for line in list(server.output) if f" request_id={request_id} " in line]

    assert eventually(lambda: bool(found())), f"{request_id} in {server.output}"
    (line,) = found()
    return line


def named_client(server: RunningServer, client: httpx.Client, headers: dict[str, str]) -> str:
    """Send a request; return the address of its client in the log."""
    request_id = secrets.token_hex(8)
    answer = client.get("/v1/models", headers={**headers, "X-Request-ID": request_id})
    assert answer.status_code == 200, answer.text
    found = re.search(r" client=(\S*) ", log_line(server, request_id))
    assert found is not None
    return found[1]


def once(server: RunningServer, url: str, headers: dict[str, str]) -> str:
    """Send a request on a new connection; return the address of its client in the log."""
    with client_at(ALICE, url) as client:
        return named_client(server, client, headers)


def connections(server: RunningServer) -> set[int]:
    """Return the proxy's ports of the open connections to the server."""
    return {
        each.raddr.port
        for each in psutil.Process(server.pid).net_connections("tcp")
        if each.status == "ESTABLISHED" and each.laddr.port == server.port
    }


def check_stream(client: httpx.Client) -> None:
    """Read a stream to its end, and check that its tokens come one by one."""
    asked = {"prompt": "Hello", "max_tokens": NUM_TOKENS}
    with client.stream("POST", "/generate", json=asked) as answer:
        assert answer.status_code == 200
        pieces = list(answer.iter_raw())
    events = b"".join(pieces).decode().split("\n\n")
    assert events.pop() == ""
    assert len(events) == NUM_TOKENS + 1
    assert '"finish_reason":"length"' in events[-1]
    # A proxy that buffers sends them all at once; a busy machine puts some together.
    assert len(pieces) > NUM_TOKENS / 10, "the proxy holds tokens back"


# The configurations that the guide shows.


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documented_proxy_names_its_clients_and_streams(
    trusting: RunningServer, tmp_path: Path, name: str, http2: bool
) -> None:
    with DOCUMENTED[name](trusting, tmp_path) as url:
        for address in (ALICE, BOB):
            with client_at(address, url, http2=http2) as client:
                for headers in ({}, FORGED, FORGED_BOTH):
                    assert named_client(trusting, client, headers) == address
        with client_at(ALICE, url, http2=http2) as client:
            check_stream(client)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_headers_of_an_untrusted_proxy_are_ignored(
    distrustful: RunningServer, tmp_path: Path, name: str
) -> None:
    with DOCUMENTED[name](distrustful, tmp_path) as url:
        for headers in ({}, FORGED, FORGED_BOTH):
            assert once(distrustful, url, headers) == PROXY


@pytest.mark.parametrize("name", DOCUMENTED)
def test_each_request_on_a_shared_connection_has_its_own_client(
    trusting: RunningServer, tmp_path: Path, name: str
) -> None:
    with contextlib.ExitStack() as stack:
        if name == "nginx":
            url = stack.enter_context(documented_nginx(trusting, tmp_path))
        else:
            url = stack.enter_context(documented_haproxy(trusting, tmp_path, REUSE))
        clients = {
            address: stack.enter_context(client_at(address, url)) for address in (ALICE, BOB)
        }
        used = set()
        for _ in range(3):
            for address, client in clients.items():
                assert named_client(trusting, client, FORGED) == address
                used |= connections(trusting)
        assert len(used) == 1


# nginx with `Forwarded`.


def test_nginx_may_write_forwarded_instead(trusting: RunningServer, tmp_path: Path) -> None:
    written = 'proxy_set_header Forwarded "for=$remote_addr";'
    cleared = 'proxy_set_header X-Forwarded-For "";'
    with documented_nginx(trusting, tmp_path, written=written, cleared=cleared) as url:
        for headers in ({}, FORGED, FORGED_BOTH):
            assert once(trusting, url, headers) == ALICE


def test_a_header_that_the_proxy_passes_on_is_not_believed(
    trusting: RunningServer, tmp_path: Path
) -> None:
    written = 'proxy_set_header Forwarded "for=$remote_addr";'
    with documented_nginx(trusting, tmp_path, written=written, cleared="") as url:
        assert once(trusting, url, {}) == ALICE
        assert once(trusting, url, FORGED) == PROXY


# HAProxy with the PROXY protocol.


@pytest.mark.parametrize("options", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_proxy_protocol_names_the_client_of_a_connection(
    trusting: RunningServer, tmp_path: Path, options: str
) -> None:
    with tcp_haproxy(trusting, tmp_path, options) as url:
        for address in (ALICE, BOB):
            with client_at(address, url) as client:
                before = connections(trusting)
                assert named_client(trusting, client, {}) == address
                assert named_client(trusting, client, FORGED) == address
                check_stream(client)
                assert named_client(trusting, client, FORGED_BOTH) == address
                assert len(connections(trusting) - before) == 1


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_proxy_that_passes_bytes_on_may_speak_tls(
    trusting: RunningServer, tmp_path: Path, http2: bool
) -> None:
    tls = "ssl crt models.pem alpn http/1.1"
    with (
        tcp_haproxy(trusting, tmp_path, "send-proxy-v2", tls=tls) as url,
        client_at(ALICE, url, http2=http2) as client,
    ):
        assert named_client(trusting, client, FORGED) == ALICE


@pytest.mark.parametrize("options", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_proxy_that_speaks_http_and_the_proxy_protocol_mixes_up_no_clients(
    trusting: RunningServer, tmp_path: Path, options: str
) -> None:
    with (
        documented_haproxy(trusting, tmp_path, f" {options}{REUSE}") as url,
        client_at(ALICE, url) as alice,
        client_at(BOB, url, http2=True) as bob,
    ):
        for _ in range(3):
            assert named_client(trusting, alice, FORGED) == ALICE
            assert named_client(trusting, bob, FORGED) == BOB


@pytest.mark.parametrize(
    ("options", "status"), [("send-proxy", 501), ("send-proxy-v2", 400)], ids=PROTOCOLS
)
def test_the_proxy_protocol_of_an_untrusted_proxy_is_malformed(
    distrustful: RunningServer, tmp_path: Path, options: str, status: int
) -> None:
    with tcp_haproxy(distrustful, tmp_path, options) as url, client_at(ALICE, url) as client:
        answer = client.get("/v1/models")
        # To an HTTP server, the first line of version 1 has an unknown method.
        assert answer.status_code == status
        assert f" client={PROXY} " in log_line(distrustful, answer.headers["X-Request-ID"])


def test_a_trusted_proxy_need_not_use_the_protocol(trusting: RunningServer, tmp_path: Path) -> None:
    with tcp_haproxy(trusting, tmp_path, "") as url:
        assert once(trusting, url, {}) == PROXY


@pytest.mark.parametrize("options", ["", *PROTOCOLS.values()], ids=["none", *PROTOCOLS])
def test_health_checks_of_a_balancer_need_no_host(
    trusting: RunningServer, tmp_path: Path, options: str
) -> None:
    port, operator = free_port(), free_port()
    config = TCP.format(port=port, server=trusting.port, options=f"{options} check inter 100ms")
    config = replaced(config, "mode tcp", "mode tcp\n    option httpchk GET /health/ready")
    config = f"    stats socket ipv4@127.0.0.1:{operator} level user\n{config}"

    def state() -> str:
        with socket.create_connection(("127.0.0.1", operator)) as asking:
            asking.sendall(b"show stat\n")
            with asking.makefile() as answer:
                (line,) = [line for line in answer if line.startswith("clients,one,")]
        return line

    with haproxy(tmp_path, port, config):
        # While a check runs, a star stands before the last one's result.
        assert eventually(lambda: ",L7OK,200," in state()), state()


def test_clients_behind_one_proxy_have_their_own_shares(
    trusting: RunningServer, tmp_path: Path
) -> None:
    """With one slot, the streams' lines in the log have the order in which the streams ran."""

    def ask(client: httpx.Client, request_id: str, max_tokens: int) -> httpx.Response:
        asked = client.build_request(
            "POST",
            "/generate",
            json={"prompt": "Hello", "max_tokens": max_tokens},
            headers={"X-Request-ID": request_id},
        )
        answer = client.send(asked, stream=True)  # returns at the head: the stream has its place
        assert answer.status_code == 200
        return answer

    with (
        tcp_haproxy(trusting, tmp_path, "send-proxy-v2") as url,
        client_at(ALICE, url) as alice,
        client_at(BOB, url) as bob,
    ):
        first = ask(alice, "alice-1", 1000)
        waiting = [ask(alice, f"alice-{number}", 1) for number in (2, 3, 4)]
        waiting.append(ask(bob, "bob-1", 1))
        first.close()
        for each in waiting:
            each.read()
        lines = [log_line(trusting, f"alice-{number}") for number in (1, 2, 3, 4)]
        line = log_line(trusting, "bob-1")
    order = [each for each in trusting.output if each in [line, *lines]]
    assert order.index(line) < order.index(lines[2])
