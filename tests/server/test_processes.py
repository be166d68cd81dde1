"""The server's processes: names, signals, deaths, and every reason not to start."""

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import requests

from penstock.engine.llamacpp.hub import find_model
from tests.support.raw import Connection, generate, open_stream, post
from tests.support.servers import refuses_to_start, serve, start
from tests.support.waiting import eventually

LONG = {"engine": "mock", "mock_interval": 0.02, "engine_arg": ["length=100000"]}
PATIENCE_S = 30.0


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_processes_have_telling_titles() -> None:
    with serve(engine="mock") as server:
        titles = [
            " ".join(psutil.Process(pid).cmdline()).strip()
            for pid in (server.pid, server.engine_pid())
        ]
    assert titles == ["penstock: server", "penstock: engine"]


@pytest.mark.parametrize("engine", ["mock", "llamacpp"])
def test_a_server_that_is_killed_leaves_no_process_behind(engine: str) -> None:
    with serve(engine=engine) as server:
        engine_pid = server.engine_pid()
        connection, _ = open_stream(server.port, generate(max_tokens=1000))
        with connection:
            server.process.kill()
            server.process.wait()
            assert eventually(lambda: is_gone(engine_pid))


def test_a_server_that_is_killed_while_it_loads_leaves_no_process_behind() -> None:
    with start() as server:
        children: list[int] = []

        def has_engine() -> bool:
            children[:] = [child.pid for child in psutil.Process(server.pid).children()]
            return bool(children)

        assert eventually(has_engine)
        server.kill()
        server.wait()
        assert eventually(lambda: all(is_gone(pid) for pid in children))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_running_streams_come_to_their_end_before_the_server_does(number: signal.Signals) -> None:
    with serve(engine="mock", mock_interval=0.02, engine_arg=["length=400"]) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=400))
        with connection:
            events = connection.events()
            next(events)
            server.signal(number)
            assert eventually(lambda: server.readiness() == 503)
            refused = requests.post(
                f"{server.url}/generate", json={"prompt": "x"}, timeout=PATIENCE_S
            )
            *_, end = events
        assert refused.status_code == 503
        assert refused.json()["code"] == "draining"
        assert "Retry-After" in refused.headers
        assert end["finish_reason"] == "stop"
        assert server.process.wait(PATIENCE_S) == 0


def test_streams_that_outlast_the_drain_timeout_end_with_an_error() -> None:
    with serve(drain_timeout=0.3, **LONG) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=1000))
        with connection:
            events = connection.events()
            next(events)
            server.signal(signal.SIGTERM)
            *_, end = events
        assert end["finish_reason"] == "error"
        assert end["error"]["code"] == "server_shutdown"
        assert end["error"]["retry_safe"]
        assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_request_still_uploading_when_draining_starts_is_refused_at_once(path: str) -> None:
    with serve(engine="mock", drain_timeout=600) as server:
        with Connection(server.port) as connection:
            head = post(b"?" * 100, "Expect: 100-continue", path=path).partition(b"?")[0]
            assert connection.send(head).head().status == 100  # the body is being read
            connection.send(b'{"prompt": ')
            server.signal(signal.SIGTERM)
            refused = connection.response()
            assert connection.is_closed()
        problem = refused.json()
        assert refused.status == 503
        assert (problem if path == "/generate" else problem["error"])["code"] == "draining"
        assert "retry-after" in refused.headers
        assert server.process.wait(PATIENCE_S) == 0
    assert not [line for line in server.output if "ERROR" in line or "Traceback" in line]


def test_a_second_signal_ends_the_server_at_once() -> None:
    with serve(drain_timeout=600, **LONG) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=1000))
        with connection:
            events = connection.events()
            next(events)
            server.signal(signal.SIGINT)
            assert eventually(lambda: server.readiness() == 503)
            server.signal(signal.SIGINT)
            *_, end = events
        assert end["finish_reason"] == "error"
        assert end["error"]["code"] == "server_shutdown"
        assert end["error"]["retry_safe"]
        assert server.process.wait(PATIENCE_S) == 0


def test_a_flood_of_signals_never_kills_a_server_that_ends() -> None:
    with serve(engine="mock") as server:
        while server.process.poll() is None:
            for _ in range(1000):
                os.kill(server.pid, signal.SIGTERM)
        assert server.process.returncode == 0


@pytest.mark.parametrize("engine", ["mock", "llamacpp"])
def test_a_killed_engine_comes_back_and_each_stream_ends_once(engine: str) -> None:
    with serve(engine=engine, mock_interval=0.02) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=1000))
        with connection:
            events = connection.events()
            next(events)
            psutil.Process(server.engine_pid()).kill()
            rest = list(events)
        assert [event["finished"] for event in rest].count(True) == 1
        assert rest[-1]["finished"]
        assert eventually(lambda: any("ready again" in line for line in server.output))
        answer = requests.post(
            f"{server.url}/generate",
            json={"prompt": "x", "max_tokens": 2, "stream": False},
            timeout=PATIENCE_S,
        )
        assert answer.json()["usage"]["completion_tokens"] > 0


def test_a_port_in_use_is_explained_and_another_port_proposed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refuses_to_start(engine="mock", port=port)
    assert f"Port {port} is in use on 127.0.0.1" in said
    assert f"--port {port + 1}" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"model": "./nowhere.gguf"}, "no model file"),
        ({"model": "nothing"}, "no model"),
        ({"engine_arg": "n_ctxx=5"}, "Did you mean n_ctx?"),
        ({"engine_arg": "n_ctx=much"}, "does not take this value"),
        ({"engine_arg": "n_ctx"}, "name=value"),
        ({"engine_arg": "context=512"}, "Use --context"),
        ({"context": 1025}, "--context 1025 is larger than the model's own context, 1024 tokens."),
        ({"engine": "mock", "engine_arg": "intervall=1"}, "intervall"),
        ({"engine": "vllm"}, "vLLM cannot serve rill"),
        ({"engine": "vllm", "model": "./nowhere"}, "no folder ./nowhere"),
    ],
)
def test_a_model_that_cannot_be_served_is_explained(
    flags: dict[str, object], expected: str
) -> None:
    assert expected in refuses_to_start(**flags)


def test_the_banner_shows_the_context_of_each_slot() -> None:
    with serve(slots=2) as server:
        assert server.has_said("2 slots, 1,024 tokens of context")
    with serve(slots=2, context=512) as server:
        assert server.has_said("2 slots, 512 tokens of context")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_explained_and_not_replaced_by_another_engine() -> None:
    said = refuses_to_start(engine="vllm", model="facebook/opt-350m")
    assert "vLLM is not installed" in said
    assert "pip install '.[vllm]'" in said


def test_an_incompatible_vllm_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = refuses_to_start(engine="vllm", model="facebook/opt-350m")
    assert "This vLLM cannot be used: No module named 'vllm." in said


def test_a_file_that_is_not_a_complete_model_is_explained(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    assert "not a GGUF file" in refuses_to_start(model=text)
    half = tmp_path / "half.gguf"
    half.write_bytes(find_model("rill").read_bytes()[:1_000_000])
    assert "corrupted or incomplete" in refuses_to_start(model=half)


def test_any_gguf_is_served_by_its_path_and_under_an_alias(tmp_path: Path) -> None:
    model = tmp_path / "other.gguf"
    model.write_bytes(find_model("rill").read_bytes())
    with serve(model=model) as server:
        assert requests.get(server.url, timeout=PATIENCE_S).json()["model"] == "other"
    with serve(model=model, model_name="alias") as server:
        assert requests.get(server.url, timeout=PATIENCE_S).json()["model"] == "alias"


def test_ctrl_c_while_loading_ends_cleanly() -> None:
    with start() as process:
        assert eventually(lambda: bool(psutil.Process(process.pid).children()))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (0, -signal.SIGINT, 130), said
    assert "Traceback" not in said


def test_help_explains_the_flags() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "penstock", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--engine-arg" in said
    assert "penstock.toml" in said


def test_an_engine_is_served_by_its_import_string() -> None:
    with serve(engine="penstock.engine.mock:Mock", engine_arg="text=One") as server:
        assert requests.get(server.url, timeout=PATIENCE_S).json()["model"] == "mock"
        body = {"prompt": "x", "stream": False}
        answer = requests.post(f"{server.url}/generate", json=body, timeout=PATIENCE_S).json()
    assert answer["text"] == "One"
