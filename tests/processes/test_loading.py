"""Which of several processes answers while one of them, or all, cannot serve requests."""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gated import Gate
from tests.support.ports import free_port
from tests.support.raw import Connection, ask, generate, request
from tests.support.servers import RunningServer, serve, start
from tests.support.several import all_ready, family_of, processes_of, states_of
from tests.support.waiting import eventually

PATIENCE_S = 40.0
GATED = "tests.support.gated:Gated"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="module")
def server(gate: Gate) -> Iterator[RunningServer]:
    """Two processes, which every test leaves as it found them: both ready, and the gate open."""
    with serve(processes=2, engine=GATED, engine_arg=f"gate={gate.path}") as server:
        yield server
        gate.open()


def is_served(server: RunningServer) -> bool:
    return ask(server.port, generate(max_tokens=1, stream=False)).status == 200


def test_a_process_without_its_engine_leaves_new_connections_to_the_other(
    server: RunningServer, gate: Gate
) -> None:
    gate.close()
    (engine,) = processes_of(server)[1].children()
    engine.kill()
    assert eventually(lambda: states_of(server)["1"] == "engine down", PATIENCE_S)
    assert all(is_served(server) for _ in range(20))
    assert ask(server.port, request("GET", "/health/ready")).status == 200
    gate.open()
    assert all_ready(server)


def test_a_process_that_loads_its_model_leaves_new_connections_to_the_other(
    server: RunningServer, gate: Gate
) -> None:
    gate.close()
    killed = processes_of(server)[1]
    killed.kill()
    assert eventually(lambda: states_of(server)["1"] == "loading", PATIENCE_S)
    assert all(is_served(server) for _ in range(20))
    gate.open()
    assert all_ready(server)


def test_if_no_process_has_an_engine_one_says_so(server: RunningServer, gate: Gate) -> None:
    gate.close()
    for process in processes_of(server).values():
        (engine,) = process.children()
        engine.kill()
    assert eventually(lambda: server.readiness() == 503, PATIENCE_S)
    refused = ask(server.port, generate(max_tokens=1))
    assert refused.status == 503
    assert refused.json()["code"] == "engine_down"
    gate.open()
    assert all_ready(server)


def test_connections_wait_while_every_process_is_replaced(
    server: RunningServer, gate: Gate
) -> None:
    gate.close()
    said = len(server.output)
    for process in processes_of(server).values():
        process.kill()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Connection(server.port)) for _ in range(10)]
        for connection in waiting:
            connection.send(generate(max_tokens=1, stream=False))
        assert eventually(lambda: "".join(server.output[said:]).count("starting another") == 2)
        gate.open()
        assert [connection.response().status for connection in waiting] == [200] * 10
    assert all_ready(server)


def test_while_all_load_health_is_answered_and_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    gate.close()
    flags = {"engine": GATED, "engine_arg": f"gate={gate.path}", "port": free_port()}
    with start(processes=2, **flags) as process:
        output: list[str] = []
        assert process.stderr is not None
        reading = threading.Thread(target=output.extend, args=[process.stderr])
        reading.start()

        def health() -> str:
            with contextlib.suppress(OSError):
                answer = ask(int(str(flags["port"])), request("GET", "/health"))
                return f"{answer.status} {answer.json()['status']}"
            return ""

        assert eventually(lambda: health() == "503 loading", PATIENCE_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        reading.join()
        assert "Traceback" not in "".join(output)
        assert "page and API" not in "".join(output)
    gate.open()


def test_the_json_log_has_one_line_when_all_serve_and_names_the_processes() -> None:
    with serve(engine="mock", processes=2, log_format="json") as server:
        assert is_served(server)
        # The log is written off the request's path: a process killed before that says nothing.
        assert eventually(lambda: '"status": 200' in "".join(server.output), PATIENCE_S)
        processes_of(server)[1].kill()
        assert eventually(lambda: "starting another" in "".join(server.output), PATIENCE_S)
        assert all_ready(server)
    lines = [json.loads(line) for line in server.output]
    (serving,) = [line for line in lines if line["message"] == "serving"]
    assert serving["processes"] == 2
    (answered,) = [line for line in lines if line.get("status") == 200]
    assert answered["process"] in (1, 2)


def test_a_supervisor_s_folder_is_removed_at_its_end() -> None:
    with serve(engine="mock", processes=2) as server:
        opened = [
            found[1]
            for process in family_of(server)
            for mapped in process.memory_maps()
            if (found := re.match(r"(.*penstock-server-.*)/loads", mapped.path))
        ]
        (folder,) = set(opened)
        assert len(opened) == 2
        assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert not Path(folder).exists()
