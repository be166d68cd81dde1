"""Several server processes at one address: all serve, and a dead or silent one is replaced."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gated import Gate
from tests.support.keyed import Keys
from tests.support.ports import free_port
from tests.support.raw import Connection, ask, generate, open_stream, request, text_of
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, refuses_to_start, serve, start
from tests.support.several import (
    all_ready,
    connection_to,
    family_of,
    number_of,
    processes_of,
    states_of,
)
from tests.support.waiting import eventually

LONG = {
    "engine": "mock",
    "mock_interval": 0.02,
    "engine_arg": ["length=100000", "numbered=true"],
}
PATIENCE_S = 40.0
PROBE = request("GET", "/health/live")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Two processes, which every test leaves as it found them: both ready."""
    with serve(processes=2, **LONG) as server:
        yield server


def has_said(server: RunningServer, words: str, times: int = 1) -> bool:
    return eventually(lambda: sum(words in line for line in server.output) >= times, PATIENCE_S)


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_both_processes_serve_and_have_engines_and_cores_of_their_own(
    server: RunningServer,
) -> None:
    processes = processes_of(server)
    assert set(processes) == {1, 2}
    cores = [set(process.cpu_affinity()) for process in processes.values()]
    assert not cores[0] & cores[1]
    for number, process in processes.items():
        (engine,) = process.children()
        assert set(engine.cpu_affinity()) == cores[number - 1]
        with connection_to(server, number) as connection:
            answer = connection.send(generate(max_tokens=2, stream=False)).response()
        assert answer.json()["usage"]["completion_tokens"] == 2


def test_the_banner_comes_once_and_names_the_number(server: RunningServer) -> None:
    (banner,) = [line for line in server.output if "page and API" in line]
    assert str(server.port) in banner
    assert server.has_said("2 processes with unlimited slots each")


def test_health_names_every_process_whichever_answers(server: RunningServer) -> None:
    for number in (1, 2):
        with connection_to(server, number) as connection:
            answer = connection.send(request("GET", "/health/ready")).response()
            assert answer.status == 200
            assert answer.json() == {
                "status": "ready",
                "processes": {"1": "ready", "2": "ready"},
            }


def test_metrics_are_the_sums_of_all_processes_and_never_go_back(server: RunningServer) -> None:
    # A stream that a test has left may end a little later.
    before = scrape_until(server, lambda now: now("penstock_streams_running") == 0)
    num_asked = {1: 3, 2: 5}
    for number, times in num_asked.items():
        with connection_to(server, number) as connection:
            for _ in range(times):
                connection.send(generate(max_tokens=4, stream=False)).response()
    grown = {
        "penstock_streams_started_total": 8,
        "penstock_completion_tokens_total": 32,
        "penstock_e2e_latency_seconds_count": 8,
    }
    for number in num_asked:
        with connection_to(server, number) as connection:  # whichever process is asked
            text = connection.send(request("GET", "/metrics")).response().body.decode()
        assert f'penstock_engine_up{{process="{number}"}} 1.0' in text
        # A process that gets no time for a second is shown with its last counts.
        after = scrape_until(
            server,
            lambda now: all(now(name) - before(name) == num for name, num in grown.items()),
        )
    assert after("penstock_build_info") == 1

    killed = processes_of(server)[1]
    killed.kill()
    restarts = "penstock_process_restarts_total"
    assert eventually(lambda: Scrape(server)(restarts) == before(restarts) + 1, PATIENCE_S)
    assert all_ready(server)
    finally_ = Scrape(server)
    for name in ("penstock_streams_started_total", "penstock_completion_tokens_total"):
        assert finally_(name) == after(name), name
    openmetrics = ask(
        server.port, request("GET", "/metrics", "Accept: application/openmetrics-text")
    )
    assert openmetrics.body.endswith(b"# EOF\n")


def test_a_killed_process_costs_its_own_streams_and_no_connection(server: RunningServer) -> None:
    idle = {number: connection_to(server, number) for number in (1, 2)}
    for connection in idle.values():
        connection.send(generate(max_tokens=250)).head()
    has_ended = threading.Event()
    refused: list[OSError] = []
    num_answered = 0

    def ask_on() -> None:
        nonlocal num_answered
        while not has_ended.is_set():
            try:
                with Connection(server.port) as connection:
                    connection.send(generate(max_tokens=1, stream=False)).response()
                    num_answered += 1
            except ConnectionRefusedError as error:
                refused.append(error)
            except (EOFError, ConnectionError):
                continue  # the killed process had this one

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        killed = processes_of(server)[2]
        (engine,) = killed.children()
        killed.kill()
        assert eventually(lambda: is_gone(killed), PATIENCE_S)
        for _ in range(20):
            assert ask(server.port, generate(max_tokens=1, stream=False)).status == 200
        before = num_answered
        assert all_ready(server)
        assert eventually(lambda: num_answered > before, PATIENCE_S)
    finally:
        has_ended.set()
        asking.join()
    assert not refused
    *_, end = idle[1].events()
    assert end["finish_reason"] == "length"
    with pytest.raises((EOFError, ConnectionError)):
        list(idle[2].events())
    for connection in idle.values():
        connection.close()
    assert eventually(lambda: is_gone(engine), PATIENCE_S)
    assert has_said(server, "server process 2 ended (signal SIGKILL); starting another")


def test_new_streams_go_to_the_process_that_has_fewer(server: RunningServer) -> None:
    streams: list[Connection] = []
    numbers: list[int] = []
    try:
        # Each process gets half of the streams. A process that gets no time falls behind, and it
        # gets the next streams.
        while len(streams) < 20 or abs(numbers.count(1) - numbers.count(2)) > 2:
            assert len(streams) < 300, numbers
            streams.append(open_stream(server.port, generate(max_tokens=1000))[0])
            numbers.append(number_of(server, streams[-1]))
    finally:
        for stream in streams:
            stream.close()


def test_a_resumable_stream_of_a_killed_process_goes_on_at_another(server: RunningServer) -> None:
    with connection_to(server, 1) as connection:
        stream_id, events = open_resumable(connection)
        seen = [next(events) for _ in range(10)]
        processes_of(server)[1].kill()
        with pytest.raises((EOFError, ConnectionError)):
            seen.extend(events)
    check_rest(server, stream_id, seen)
    assert all_ready(server)


def test_a_stopped_process_is_killed_and_replaced_and_its_stream_goes_on(
    server: RunningServer,
) -> None:
    stopped = processes_of(server)[1]
    with connection_to(server, 1) as connection:
        stream_id, events = open_resumable(connection)
        seen = [next(events) for _ in range(10)]
        stopped.suspend()
        assert has_said(server, "server process 1 is silent; killing it")
    check_rest(server, stream_id, seen)
    assert eventually(lambda: is_gone(stopped), PATIENCE_S)
    assert all_ready(server)
    with connection_to(server, 1) as connection:
        assert connection.send(generate(max_tokens=1, stream=False)).response().status == 200


def open_resumable(connection: Connection) -> tuple[str, Iterator[dict[str, Any]]]:
    """Open a resumable stream of 200 numbered tokens; return its id and its events."""
    head = connection.send(generate(max_tokens=200, resumable=True)).head()
    return head.headers["x-stream-id"], connection.events()


def check_rest(server: RunningServer, stream_id: str, seen: list[dict[str, Any]]) -> None:
    """Read the rest of the stream at process 2, and check that nothing is lost or changed."""
    last = f"Last-Event-ID: {seen[-1]['index']}"
    with connection_to(server, 2) as other:
        assert other.send(request("GET", f"/streams/{stream_id}", last)).head().status == 200
        seen = [*seen, *other.events()]
    assert [event["index"] for event in seen] == list(range(len(seen)))
    assert text_of(seen) == "".join(f"Hello:{number} " for number in range(200))
    assert seen[-1]["finish_reason"] == "length"


def test_a_scrape_while_a_process_is_stopped_has_its_last_counts(server: RunningServer) -> None:
    assert all_ready(server)
    before = Scrape(server)("penstock_streams_started_total")
    stopped = processes_of(server)[1]
    with connection_to(server, 2) as connection:
        stopped.suspend()
        try:
            answer = connection.send(request("GET", "/metrics")).response()
        finally:
            stopped.resume()
    assert f"penstock_streams_started_total {before}" in answer.body.decode()
    assert all_ready(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_all_processes_drain_and_end_even_if_all_get_the_signal(number: signal.Signals) -> None:
    with serve(engine="mock", processes=2, mock_interval=0.05, engine_arg=["length=200"]) as server:
        streams = {each: connection_to(server, each) for each in (1, 2)}
        for connection in streams.values():
            connection.send(generate(max_tokens=200)).head()
        for process in family_of(server):  # as systemd does, and a terminal
            process.send_signal(number)
        assert eventually(lambda: server.readiness() == 503)
        # One process hears of the other's state a moment later.
        assert eventually(lambda: set(states_of(server).values()) == {"draining"})
        for connection in streams.values():
            *_, end = connection.events()
            assert end["finish_reason"] == "stop"
            connection.close()
        assert server.process.wait(PATIENCE_S) == 0
    assert not [line for line in server.output if "ERROR penstock.processes" in line]
    assert "Traceback" not in "".join(server.output)


def test_a_process_that_drains_goes_on_with_the_stream_of_one_that_is_killed() -> None:
    with serve(processes=2, drain_timeout=600, **LONG) as server:
        with connection_to(server, 1) as first, connection_to(server, 2) as second:
            stream_id, events = open_resumable(first)
            seen = [next(events) for _ in range(10)]
            _, own_events = open_resumable(second)
            next(own_events)
            server.signal(signal.SIGTERM)
            assert eventually(lambda: set(states_of(server).values()) == {"draining"}, PATIENCE_S)
            processes_of(server)[1].kill()
            with pytest.raises((EOFError, ConnectionError)):
                seen.extend(events)
            check_rest(server, stream_id, seen)
            *_, end = own_events
            assert end["finish_reason"] == "length"
        assert server.process.wait(PATIENCE_S) == 0


def test_a_second_signal_ends_all_processes_at_once() -> None:
    with serve(processes=2, drain_timeout=600, **LONG) as server:
        streams = {each: connection_to(server, each) for each in (1, 2)}
        for connection in streams.values():
            connection.send(generate(max_tokens=100_000)).head()
        server.signal(signal.SIGINT)
        assert eventually(lambda: server.readiness() == 503)
        server.signal(signal.SIGINT)
        for connection in streams.values():
            *_, end = connection.events()
            assert end["error"]["code"] == "server_shutdown"
            connection.close()
        assert server.process.wait(PATIENCE_S) == 0


def test_nothing_is_left_of_a_killed_supervisor() -> None:
    with serve(processes=2, port=free_port(), **LONG) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=1000))
        with connection:
            family = family_of(server)
            server.process.kill()
            server.process.wait()
            assert eventually(lambda: all(is_gone(each) for each in family))
    with pytest.raises(ConnectionRefusedError):
        Connection(server.port)


def test_a_changed_file_of_keys_reaches_every_process(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.toml", "ada", "bob")
    with serve(processes=2, keys=keys.path, **LONG) as server:
        ada, bob = keys.header("ada"), keys.header("bob")
        paths = {each: connection_to(server, each) for each in (1, 2)}
        running = Connection(server.port).send(keys.generate("ada", max_tokens=60))
        running.head()

        def statuses(header: str) -> list[int]:
            asked = request("GET", "/v1/models", header)
            return [each.send(asked).response().status for each in paths.values()]

        assert statuses(ada) == statuses(bob) == [200, 200]
        del keys.keys["bob"]
        keys.write()
        server.signal(signal.SIGHUP)
        assert eventually(lambda: statuses(bob) == [401, 401], PATIENCE_S)
        assert statuses(ada) == [200, 200]
        *_, end = running.events()
        assert end["finish_reason"] == "length"
        for each in (running, *paths.values()):
            each.close()


def test_a_port_in_use_is_explained_once() -> None:
    with serve(engine="mock") as other:
        said = refuses_to_start(engine="mock", processes=2, port=other.port)
    assert f"Port {other.port} is in use" in said


def test_what_no_process_can_start_with_is_said_once(tmp_path: Path) -> None:
    said = refuses_to_start(engine="mock", processes=2, keys=tmp_path / "missing.toml")
    assert "The file of keys cannot be read" in said
    said = refuses_to_start(engine="mock", processes=2, engine_arg="nonsense=1")
    assert "nonsense" in said


def test_more_processes_than_cores_are_refused_with_the_number_that_fits() -> None:
    cores = len(os.sched_getaffinity(0))
    said = refuses_to_start(engine="mock", processes=cores + 1)
    assert f"{cores} processor cores" in said


def test_a_process_that_dies_while_all_load_ends_the_start(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    gate.close()
    gated = {"engine": "tests.support.gated:Gated", "engine_arg": f"gate={gate.path}"}
    with start(processes=2, **gated) as process:
        assert eventually(lambda: len(psutil.Process(process.pid).children()) == 2)
        psutil.Process(process.pid).children()[1].kill()
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "before it was ready (signal SIGKILL)" in said
    assert "Traceback" not in said
    gate.open()
