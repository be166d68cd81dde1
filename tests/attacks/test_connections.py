"""Connections that ask nothing (fault D18): one address cannot keep the others out."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.certificates import TlsFiles, good, trusting
from tests.attacks.honest import STEADY, honest_client
from tests.support.raw import Connection, ask, generate, request
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

MAX_CONNECTIONS = 40
SHARE = 35
"""Seven of eight connections."""
ATTACKER = "127.0.0.2"
HEALTH = request("GET", "/health")
PATIENT = {**STEADY, "max_connections": MAX_CONNECTIONS}


@pytest.fixture(params=["plain", "tls"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    flags = TlsFiles(tmp_path, good()).flags() if request.param == "tls" else {}
    with serve(**PATIENT, **flags) as server:
        yield server


def context_of(server: RunningServer) -> ssl.SSLContext | None:
    return trusting() if server.url.startswith("https") else None


@contextlib.contextmanager
def holding(server: RunningServer, number: int, source: str, sent: bytes = b"") -> Iterator[None]:
    """Hold connections that ask nothing, whatever becomes of them."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            with contextlib.suppress(OSError):
                stack.enter_context(Connection(server.port, source=source)).send(sent)
        yield


def health(server: RunningServer, source: str = "127.0.0.1") -> int:
    """Return the status of a health check."""
    with Connection(server.port, source=source, context=context_of(server)) as connection:
        return connection.send(HEALTH).response().status


def test_one_address_with_silent_connections_keeps_no_other_out(server: RunningServer) -> None:
    with (
        honest_client(server, context=context_of(server)),
        holding(server, 2 * MAX_CONNECTIONS, ATTACKER),
    ):
        assert health(server) == 200


def test_eight_addresses_with_silent_connections_keep_no_other_out(server: RunningServer) -> None:
    with (
        honest_client(server, context=context_of(server)),
        contextlib.ExitStack() as stack,
    ):
        for last in range(2, 10):
            stack.enter_context(holding(server, MAX_CONNECTIONS // 4, f"127.0.0.{last}"))
        assert health(server) == 200


def test_one_address_with_open_requests_leaves_its_eighth_to_others() -> None:
    with serve(**PATIENT) as server, honest_client(server), contextlib.ExitStack() as stack:
        for _ in range(SHARE):
            connection = stack.enter_context(Connection(server.port, source=ATTACKER))
            assert connection.send(generate(max_tokens=100_000)).head().status == 200
        beyond = stack.enter_context(Connection(server.port, source=ATTACKER, patience=0.5))
        with pytest.raises(TimeoutError):
            beyond.send(HEALTH).head()
        assert ask(server.port, HEALTH).status == 200


def test_a_trusted_proxy_has_no_share() -> None:
    with (
        serve("--trusted-proxy", ATTACKER, **PATIENT) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(MAX_CONNECTIONS):
            connection = stack.enter_context(Connection(server.port, source=ATTACKER))
            assert connection.send(HEALTH).response().status == 200


def test_those_that_wait_are_bounded_and_the_greediest_loses_its_newest() -> None:
    with serve(**PATIENT) as server, contextlib.ExitStack() as stack:
        for source in (ATTACKER, "127.0.0.3"):
            for _ in range(MAX_CONNECTIONS // 2):
                connection = stack.enter_context(Connection(server.port, source=source))
                assert connection.send(generate(max_tokens=100_000)).head().status == 200
        with (
            holding(server, 3 * MAX_CONNECTIONS, ATTACKER, HEALTH),
            Connection(server.port) as waits,
        ):
            waits.send(HEALTH)
            assert eventually(lambda: "too many were waiting" in "".join(server.output))
            stack.pop_all().close()  # all leave, except those that wait
            assert waits.response().status == 200


@pytest.mark.parametrize("sent", [b"", b"GET /hea"], ids=["silent", "within a head"])
def test_connections_over_tls_that_ask_nothing_are_closed(tmp_path: Path, sent: bytes) -> None:
    files = TlsFiles(tmp_path, good())
    with (
        serve(module="tests.wire.short", **STEADY, **files.flags()) as server,
        honest_client(server, context=trusting()),
        Connection(server.port, context=trusting()) as silent,
    ):
        assert silent.send(sent).is_closed()
