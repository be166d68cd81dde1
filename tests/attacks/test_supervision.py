"""Engines that die, hang or fail in every way: each is found and restarted, whatever clients do."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.attacks.honest import LONGEST_RESTART_S, STEADY, honest_client
from tests.support.raw import Connection, Response, ask, generate, open_stream, text_of
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve, start
from tests.support.waiting import eventually

ENGINE_TIMEOUT_S = 1.0
RESTARTS = "penstock_engine_restarts_total"
MIB = 1024 * 1024


def has_restarted(server: RunningServer, times: int = 1) -> Scrape:
    """Wait until the engine has come back so many times."""
    return scrape_until(server, lambda scrape: scrape(RESTARTS) >= times)


def whole(server: RunningServer, prompt: str = "Hello", **fields: object) -> Response:
    return ask(server.port, generate(prompt, stream=False, **fields))


# Deaths.


@pytest.mark.parametrize("number", [35, signal.SIGRTMAX, signal.SIGABRT, signal.SIGUSR1])
def test_a_stream_goes_on_after_any_signal(number: int) -> None:
    with serve(**STEADY) as server, honest_client(server, longest_pause=LONGEST_RESTART_S):
        os.kill(server.engine_pid(), number)
        has_restarted(server)
        assert whole(server, max_tokens=3).status == 200


def test_a_killer_that_gets_further_each_time_ends_and_its_neighbors_go_on() -> None:
    """Once, such a request was never suspected: sixty tokens took 59 restarts."""
    with serve(
        engine="mock",
        mock_interval=0.01,
        engine_arg=["die_after=1", "fatal=POISON", "length=100", "numbered=true"],
    ) as server:
        neighbors = [open_stream(server.port, generate(name))[0] for name in ("a", "b", "c")]
        killer, _ = open_stream(server.port, generate("POISON"))
        with killer:
            *_, end = killer.events()
        assert end["finish_reason"] == "error"
        assert end["error"]["code"] == "engine_died"
        assert end["error"]["retry_safe"] is False
        for name, neighbor in zip("abc", neighbors, strict=True):
            with neighbor:
                events = list(neighbor.events())
            assert text_of(events) == "".join(f"{name}:{index} " for index in range(100))
            assert events[-1]["finish_reason"] == "stop"
        assert Scrape(server)(RESTARTS) <= 4


def test_dead_engines_and_killed_servers_leave_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(tempfile.mkdtemp(prefix="t"))  # a socket's path may have only 108 bytes
    monkeypatch.setenv("TMPDIR", str(place))
    try:
        with serve(slots=1) as server:
            os.kill(server.engine_pid(), signal.SIGKILL)
            has_restarted(server)
            (folder,) = place.iterdir()
            assert [each.name for each in folder.iterdir()] == ["2"]
            server.signal(signal.SIGKILL)
            server.process.wait()
        assert folder.exists()
        with serve(engine="mock"):
            assert not folder.exists()
        assert list(place.iterdir()) == []
    finally:
        shutil.rmtree(place)


def test_an_engine_without_room_for_its_folder_is_started_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serve(engine="mock", mock_interval=0.02, engine_arg=["length=1000"]) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=200))  # four seconds
        with connection:
            events = connection.events()
            next(events)
            (folder,) = tmp_path.iterdir()
            folder.rename(tmp_path / "away")
            folder.touch()  # no folder can be made in a file
            os.kill(server.engine_pid(), signal.SIGKILL)
            assert eventually(lambda: any("did not come back" in line for line in server.output))
            assert server.readiness() == 503
            folder.unlink()
            *_, end = events
        assert end["finish_reason"] == "length"
        assert eventually(lambda: server.readiness() == 200)


# Hangs.


@contextlib.contextmanager
def impatient_clients(server: RunningServer, body: bytes) -> Iterator[None]:
    """Keep sending this request and leaving at once."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError), Connection(server.port) as client:
                client.send(body)
                time.sleep(0.01)
                client.reset()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("engine", ["mock", "llamacpp"])
def test_a_stopped_engine_is_found_though_every_client_gives_up(engine: str) -> None:
    with serve(engine=engine, engine_timeout=ENGINE_TIMEOUT_S) as server:
        stopped = server.engine_pid()
        with impatient_clients(server, generate(max_tokens=100)):
            os.kill(stopped, signal.SIGSTOP)
            has_restarted(server)
        assert server.engine_pid() != stopped
        assert eventually(lambda: server.readiness() == 200)
        assert whole(server, max_tokens=3).status == 200


def test_a_stopped_engine_is_found_though_there_is_no_request() -> None:
    with serve(engine="mock", engine_timeout=ENGINE_TIMEOUT_S) as server:
        os.kill(server.engine_pid(), signal.SIGSTOP)
        has_restarted(server)


def test_what_is_sent_to_a_stopped_engine_is_bounded() -> None:
    with serve(engine="mock", mock_interval=0, max_queue=4) as server:
        process = psutil.Process(server.pid)
        body = generate("x " * MIB)
        assert ask(server.port, body).status == 422  # too long for the model
        os.kill(server.engine_pid(), signal.SIGSTOP)
        before = process.memory_info().rss
        for _ in range(60):
            with Connection(server.port) as client:
                client.send(body)
                client.half_close()
                client.socket.settimeout(0.05)
                with contextlib.suppress(OSError, EOFError):
                    client.head()
        grown = process.memory_info().rss - before
        os.kill(server.engine_pid(), signal.SIGCONT)
        assert grown < 130 * MIB  # half of what it was when all of it was sent


def test_a_busy_engine_is_not_taken_for_hung() -> None:
    """No token comes for three times `--engine-timeout`, but the engine answers."""
    with serve(engine="mock", engine_timeout=5, engine_arg=["prefill=15"]) as server:
        assert whole(server, max_tokens=1).status == 200
        assert Scrape(server)(RESTARTS) == 0


# Engines that run and cannot serve.


def socket_of(pid: int) -> Path:
    """Return the path of the socket on which the process's llama.cpp listens."""
    paths = {Path(str(each.laddr)) for each in psutil.Process(pid).net_connections("unix")}
    (path,) = (each for each in paths if each.name == "llama.sock")
    return path


def test_a_llama_cpp_without_its_socket_is_restarted_and_the_request_goes_on() -> None:
    with serve(slots=2) as server:
        before = whole(server, temperature=0, max_tokens=5)
        socket_of(server.engine_pid()).unlink()
        after = whole(server, temperature=0, max_tokens=5)
        assert after.status == 200
        assert after.json()["text"] == before.json()["text"]
        assert Scrape(server)(RESTARTS) == 1


def test_a_llama_cpp_without_its_socket_is_found_without_a_request() -> None:
    with serve(slots=1, engine_timeout=5) as server:
        socket_of(server.engine_pid()).unlink()
        has_restarted(server)
        assert whole(server, max_tokens=3).status == 200


def test_an_engine_that_fails_every_request_is_restarted(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    with serve(engine="tests.support.failing:Failing", engine_arg=[f"file={fault}"]) as server:
        assert whole(server).status == 200
        fault.touch()
        for _ in range(3):
            assert whole(server).status == 500
        has_restarted(server)
        fault.unlink()
        assert whole(server).status == 200


def test_requests_that_fail_by_themselves_restart_nothing() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=["fail_at=0"]) as server:
        before = server.engine_pid()
        for _ in range(20):
            assert whole(server).status == 500
        assert server.engine_pid() == before


# The server's own tasks.


def test_a_task_that_fails_is_started_again_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "liveness")
    with serve(module="tests.support.broken", **STEADY) as server, honest_client(server):
        failures = "penstock_task_failures_total"
        scrape = scrape_until(server, lambda scrape: scrape(failures, task="liveness") == 2)
        assert scrape(failures) == 2
    assert sum("the task 'liveness' failed" in line for line in server.output) == 2


def test_a_server_whose_http_server_has_ended_ends_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BROKEN", "http")
    with start(engine="mock", module="tests.support.broken") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "the HTTP server has ended; the process ends" in said
    assert "LookupError" in said
