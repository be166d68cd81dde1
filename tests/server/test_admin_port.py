"""The admin port: health and metrics for machines, without keys, whatever the clients' port is."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.support.gated import Gate
from tests.support.keyed import Keys
from tests.support.ports import free_port
from tests.support.raw import Response, ask, generate, open_stream, request
from tests.support.servers import RunningServer, refuses_to_start, serve, start
from tests.support.several import processes_of
from tests.support.waiting import eventually

PATIENCE_S = 40.0
MOCK = {"engine": "mock", "mock_interval": 0.02}


class Serving(NamedTuple):
    """A server with keys, and its admin port."""

    server: RunningServer
    admin: int
    keys: Keys


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.toml", "alice", "admin")
    port = free_port()
    with serve(**MOCK, keys=keys.path, admin_port=port) as server:
        yield Serving(server, port, keys)


def get(port: int, path: str, *headers: str) -> Response:
    return ask(port, request("GET", path, *headers))


def test_health_and_metrics_need_no_key_at_the_admin_port_alone(serving: Serving) -> None:
    for path in ("/health", "/health/ready", "/health/live", "/metrics"):
        assert get(serving.admin, path).status == 200, path
    assert get(serving.server.port, "/metrics").status == 401
    asked = serving.keys.generate("alice", max_tokens=3, stream=False)
    assert ask(serving.server.port, asked).status == 200
    assert b"\npenstock_completion_tokens_total 3.0\n" in get(serving.admin, "/metrics").body


def test_the_admin_port_has_nothing_else(serving: Serving) -> None:
    for path in ("/", "/docs", "/v1/models", "/openapi.json", "/streams/x", "/page/chat.js"):
        answer = get(serving.admin, path, serving.keys.header("admin"))
        assert (answer.status, answer.json()["code"]) == (404, "no_such_route"), path
    assert ask(serving.admin, serving.keys.generate("alice")).status == 404


def test_a_web_page_cannot_read_the_admin_port_of_this_machine(serving: Serving) -> None:
    rebound = b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    assert ask(serving.admin, rebound).json()["code"] == "host_not_allowed"
    answer = get(serving.admin, "/metrics", "Origin: https://evil.example")
    assert answer.json()["code"] == "origin_not_allowed"


def test_beyond_this_machine_probes_use_any_name() -> None:
    port = free_port()
    with serve(**MOCK, admin_port=port, admin_host="0.0.0.0"):
        named = b"GET /health/ready HTTP/1.1\r\nHost: 10.1.2.3:9000\r\n\r\n"
        assert ask(port, named).status == 200


@pytest.mark.parametrize("processes", [1, 2])
def test_a_server_that_loads_its_model_lives_and_is_not_ready(
    tmp_path: Path, processes: int
) -> None:
    gate, admin = Gate(tmp_path / "gate"), free_port()
    gate.close()
    gated = {"engine": "tests.support.gated:Gated", "engine_arg": f"gate={gate.path}"}
    with start(**gated, processes=processes, admin_port=admin) as process:
        try:
            assert eventually(lambda: answers(admin), PATIENCE_S)
            assert get(admin, "/health/live").status == 200
            assert get(admin, "/health/ready").json()["status"] == "loading"
            gate.open()
            assert eventually(lambda: get(admin, "/health/ready").status == 200, PATIENCE_S)
        finally:
            gate.open()
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


def answers(port: int) -> bool:
    """Return True if somebody answers at this port, whatever it says."""
    with contextlib.suppress(ConnectionError):
        return get(port, "/health/live").status == 200
    return False


def test_a_server_that_drains_says_so_until_its_end() -> None:
    admin = free_port()
    with serve(**MOCK, engine_arg="length=100000", admin_port=admin, drain_timeout=60) as server:
        stream, _ = open_stream(server.port, generate(max_tokens=100_000))
        server.signal(signal.SIGTERM)
        assert eventually(lambda: get(admin, "/health/ready").status == 503)
        assert get(admin, "/health/ready").json()["status"] == "draining"
        assert get(admin, "/health/live").status == 200
        assert b"\npenstock_draining 1.0\n" in get(admin, "/metrics").body
        stream.close()
        assert server.process.wait(PATIENCE_S) == 0


def test_beside_tls_the_admin_port_speaks_plain_http(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    port = free_port()
    with serve(**MOCK, tls_cert=certificate, tls_key=key, admin_port=port):
        assert get(port, "/health/ready").status == 200
        assert b"\npenstock_engine_up 1.0\n" in get(port, "/metrics").body


def test_of_two_processes_either_speaks_for_both_and_a_dead_one_is_not_missed() -> None:
    port = free_port()
    with serve(**MOCK, processes=2, admin_port=port) as server:
        for _ in range(4):
            assert ask(server.port, generate(max_tokens=2, stream=False)).status == 200

        def states() -> dict[str, str]:
            found: dict[str, str] = get(port, "/health/ready").json()["processes"]
            return found

        # A process hears of the other's state a moment later, and waits a second for its metrics.
        assert eventually(lambda: states() == {"1": "ready", "2": "ready"})
        tokens = b"\npenstock_completion_tokens_total 8.0\n"
        assert eventually(lambda: tokens in get(port, "/metrics").body)
        processes_of(server)[1].suspend()  # it accepts nothing, and the other does
        try:
            assert b'penstock_engine_up{process="2"} 1.0' in get(port, "/metrics").body
        finally:
            for process in processes_of(server).values():
                process.resume()


def test_a_bad_admin_port_is_named() -> None:
    said = refuses_to_start(engine="mock", admin_port=8123, port=8123)
    assert "both 8123" in said
    assert "--admin-port 9000" in said
    assert "'admin_port' is not valid" in refuses_to_start(engine="mock", admin_port=70_000)
    with serve(engine="mock") as other:
        for processes in (1, 2):
            said = refuses_to_start(engine="mock", processes=processes, admin_port=other.port)
            assert f"Port {other.port} is in use" in said
            assert f"--admin-port {other.port + 1}" in said
    said = refuses_to_start(engine="mock", admin_port=free_port(), admin_host="192.0.2.1")
    assert "--admin-host 127.0.0.1" in said
