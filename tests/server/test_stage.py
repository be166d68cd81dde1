"""The stage really breaks things, and exists only where nobody else could use it."""

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from penstock.api.stage import stage_of
from penstock.engine.process.supervisor import SupervisedEngine
from penstock.errors import StartError
from penstock.server import with_local_model
from penstock.settings import load_settings
from penstock.web.liveness import Liveness
from tests.support.demonstration import demonstration
from tests.support.raw import Connection, Response, ask, generate, open_stream, request, text_of
from tests.support.servers import RunningServer, refuses_to_start, serve
from tests.support.waiting import eventually

DEEDS = ("cut?stream=x", "kill", "freeze", "thaw")
LENGTH = 150


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Serve a demonstration: "Hi:0 Hi:1 ..." at 50 tokens per second."""
    with demonstration(LENGTH) as server:
        yield server


def do(
    server: RunningServer,
    deed: str,
    *headers: str,
    host: str = "",
    origin: str | None = "",
    method: str = "POST",
) -> Response:
    """Press a button of the page, or of another page."""
    host = host or f"127.0.0.1:{server.port}"
    lines = [f"{method} /stage/{deed} HTTP/1.1", f"Host: {host}", "Content-Length: 0", *headers]
    if origin is not None:
        lines.append(f"Origin: {origin or 'http://' + host}")
    return ask(server.port, "\r\n".join([*lines, "", ""]).encode())


def begun(server: RunningServer, **fields: Any) -> tuple[Connection, str, list[dict[str, Any]]]:
    """Open a stream and read its first events."""
    connection, stream_id = open_stream(server.port, generate("Hi", max_tokens=LENGTH, **fields))
    events = connection.events()
    return connection, stream_id, [next(events) for _ in range(10)]


def is_whole(events: list[dict[str, Any]]) -> bool:
    return text_of(events) == "".join(f"Hi:{number} " for number in range(LENGTH))


def test_kill_kills_the_engine_s_process_and_no_token_is_lost(server: RunningServer) -> None:
    connection, _, events = begun(server)
    before = server.engine_pid()
    with connection:
        assert do(server, "kill").json() == {"engine_timeout": 3.0}
        events += connection.events()
    assert is_whole(events)
    assert not psutil.pid_exists(before)
    assert server.engine_pid() != before


def test_freeze_stops_the_process_and_thaw_lets_it_go_on(server: RunningServer) -> None:
    connection, _, events = begun(server)
    engine = psutil.Process(server.engine_pid())
    with connection:
        assert do(server, "freeze").status == 200
        assert eventually(lambda: engine.status() == psutil.STATUS_STOPPED)
        assert do(server, "thaw").status == 200
        assert eventually(lambda: engine.status() != psutil.STATUS_STOPPED)
        events += connection.events()
    assert is_whole(events)
    assert server.engine_pid() == engine.pid


def test_an_engine_that_stays_frozen_is_replaced(server: RunningServer) -> None:
    connection, _, events = begun(server)
    before = server.engine_pid()
    with connection:
        assert do(server, "freeze").status == 200
        events += connection.events()
    assert is_whole(events)
    assert server.engine_pid() != before


def test_cut_closes_the_readers_of_one_stream(server: RunningServer) -> None:
    connection, stream_id, events = begun(server, resumable=True)
    other, _, _ = begun(server)
    with connection, other:
        assert do(server, f"cut?stream={stream_id}").json() == {"connections": 1}
        assert connection.is_closed()
        assert len([*other.events()]) == LENGTH - 9  # it goes on
    assert do(server, f"cut?stream={stream_id}").json() == {"connections": 0}
    resumed = request("GET", f"/streams/{stream_id}", f"Last-Event-ID: {len(events) - 1}")
    rest, _ = open_stream(server.port, resumed)
    with rest:
        assert is_whole([*events, *rest.events()])


@pytest.mark.parametrize("deed", DEEDS)
def test_only_a_page_of_this_server_may_use_it(server: RunningServer, deed: str) -> None:
    before = server.engine_pid()
    port = server.port
    assert do(server, deed, origin=None).status == 404
    assert do(server, deed, origin="null").status == 403
    assert do(server, deed, origin="http://localhost:3000").status == 404
    assert (
        do(server, deed, origin=f"http://localhost:{port}").status == 404
    )  # the host is 127.0.0.1
    assert do(server, deed, origin=f"https://127.0.0.1:{port}").status == 404
    assert do(server, deed, origin="http://evil.example").status == 403
    assert do(server, deed, host=f"evil.example:{port}").status == 403
    assert do(server, deed, method="GET").status in (404, 405)
    assert psutil.Process(before).status() != psutil.STATUS_STOPPED
    assert server.engine_pid() == before


def test_the_page_learns_whether_there_is_a_stage(server: RunningServer) -> None:
    assert ask(server.port, request("GET", "/")).json()["stage"] == {"engine_timeout": 3.0}


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        pytest.param([], {"api_key": "k" * 40}, id="keys"),
        pytest.param(["--insecure"], {"host": "0.0.0.0"}, id="beyond this machine"),
    ],
)
def test_elsewhere_it_does_not_exist(arguments: list[str], flags: dict[str, Any]) -> None:
    with serve(*arguments, **flags) as server:
        for deed in DEEDS:
            key = f"Authorization: Bearer {'k' * 40}"
            assert do(server, deed, key).status == 404
            assert do(server, deed, key, method="GET").status == 404
        assert "stage" not in ask(server.port, request("GET", "/")).body.decode()


@pytest.mark.parametrize(
    "given",
    [
        {"api_key": ["k" * 40]},
        {"admin_key": ["k" * 40]},
        {"keys": "keys.toml"},
        {"host": "0.0.0.0"},
        {"host": "192.168.0.7"},
        {"allow_host": ["demo.example"]},
        {"trusted_proxy": ["127.0.0.1"]},
        {"processes": 2},
    ],
)
def test_a_demonstration_that_others_could_break_does_not_start(given: dict[str, Any]) -> None:
    liveness, engine = Liveness(15, 30), SupervisedEngine("module:Class", {})
    with pytest.raises(StartError, match="everyone who reaches the page"):
        stage_of(load_settings(demo=True, **given), engine, liveness)
    assert stage_of(with_local_model(load_settings(**given)), engine, liveness) is None


def test_only_the_built_in_model_has_it_without_being_asked() -> None:
    liveness, engine = Liveness(15, 30), SupervisedEngine("module:Class", {})
    built_in = stage_of(with_local_model(load_settings()), engine, liveness)
    assert built_in is not None
    assert built_in.engine_timeout == 10.0
    assert stage_of(with_local_model(load_settings(engine="mock")), engine, liveness) is None
    assert stage_of(with_local_model(load_settings(demo=False)), engine, liveness) is None
    asked = stage_of(with_local_model(load_settings(engine="mock", demo=True)), engine, liveness)
    assert asked is not None
    assert asked.engine_timeout == 300.0


def test_a_server_says_why_it_has_no_stage() -> None:
    said = refuses_to_start("--demo", engine="mock", api_key="k" * 40)
    assert "--demo lets everyone who reaches the page kill the engine." in said
