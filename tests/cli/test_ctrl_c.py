"""Ctrl-C while a server starts, and while it waits for its streams, in real terminals."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from penstock.draining import report_waiting
from tests.cli.test_chat import Terminal, environment, terminal
from tests.support.raw import generate, open_stream
from tests.support.servers import serve
from tests.support.waiting import eventually

PATIENCE_S = 30.0
LONG = ["--engine-arg", "length=100000", "--mock-interval", "0.02"]
LINE = r"waiting for (\d+) streams?; press Ctrl-C again to end now\n"


def port_of(command: Terminal) -> int:
    shown = command.expect("stop          Ctrl-C")
    found = re.search(r"http://127\.0\.0\.1:(\d+)", shown)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_drain_says_how_many_streams_it_waits_for_and_how_to_end_it(processes: str) -> None:
    flags = ["--engine", "mock", "--port", "0", "--drain-timeout", "600", *LONG]
    with terminal("serve", *flags, "--processes", processes) as command:
        port = port_of(command)
        one, _ = open_stream(port, generate(max_tokens=100_000))
        two, _ = open_stream(port, generate(max_tokens=100_000))
        with two:
            with one:
                next(one.events())
                next(two.events())
                command.type("\x03")  # once: the event loop loses no signal
                command.expect("waiting for 2 streams; press Ctrl-C again to end now\n")
            command.expect("waiting for 1 stream; press Ctrl-C again to end now\n")
            command.type("\x03")
            assert command.wait() == 0
    told = re.findall(LINE, command.seen)
    if processes == "2" and told[0] == "1":  # one has not yet told of its stream
        del told[0]
    assert told == ["2", "1"]
    assert "Traceback" not in command.seen


def test_a_server_without_streams_waits_for_none() -> None:
    with terminal("serve", "--engine", "mock", "--port", "0") as command:
        port_of(command)
        command.type("\x03")
        assert command.wait() == 0
    assert "waiting for" not in command.seen
    assert "Traceback" not in command.seen


def test_without_a_terminal_the_log_says_it_in_a_line() -> None:
    with serve(engine="mock", mock_interval=0.02, engine_arg=["length=100000"]) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=100_000))
        with connection:
            next(connection.events())
            server.signal(signal.SIGTERM)
            assert eventually(lambda: "waiting for 1 stream;" in "".join(server.output))
            server.signal(signal.SIGTERM)
            server.process.wait(PATIENCE_S)
    lines = [line for line in server.output if "waiting for" in line]
    assert lines == [
        "INFO penstock.cli.waiting: waiting for 1 stream; a second signal ends them now\n"
    ]


async def test_a_number_is_told_once_and_zero_never() -> None:
    counts = iter([3, 3, 0, 2])
    told: list[int] = []

    def count() -> int:
        return next(counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.draining.LOOK_EVERY_S", 0)
        with pytest.raises(RuntimeError):  # StopIteration of the fifth look, inside a coroutine
            await report_waiting(count, told.append)
    assert told == [3, 2]


# --- Ctrl-C during start


# Python asks this finder first when it imports a module.
INTERRUPTED_AT = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

# A script that runs tests in the background ignores SIGINT, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["penstock", *{arguments!r}]
runpy.run_module("penstock", run_name="__main__", alter_sys=True)
"""


def interrupted_at(module: str, *arguments: str) -> int:
    """Run a command that gets SIGINT when it imports this module; return its exit status."""
    code = INTERRUPTED_AT.format(module=module, arguments=arguments)
    run = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        timeout=PATIENCE_S,
    )
    assert "Traceback" not in run.stderr, run.stderr[-2000:]
    return run.returncode


@pytest.mark.parametrize("module", ["typer", "penstock.cli.main", "penstock.server"])
def test_ctrl_c_during_imports_ends_the_server_without_a_traceback(module: str) -> None:
    flags = ["--engine", "mock", "--port", "0"]
    assert interrupted_at(module, "serve", *flags) in (130, -signal.SIGINT)


def test_ctrl_c_during_the_imports_of_a_chat_ends_it_without_a_traceback() -> None:
    assert interrupted_at("penstock.server", "chat", "--engine", "mock") in (130, -signal.SIGINT)


def test_ctrl_c_while_a_model_is_downloaded_ends_without_a_traceback(tmp_path: Path) -> None:
    """A hub that accepts the request and never answers."""
    is_asked, is_over = threading.Event(), threading.Event()

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_asked.set()
            is_over.wait(PATIENCE_S)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever).start()
        url = f"http://127.0.0.1:{hub.server_address[1]}"
        more = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        with terminal("serve", "--model", "some/model-GGUF:Q4_K_M", **more) as command:
            assert is_asked.wait(PATIENCE_S)
            assert command.interrupt_to_end() == 130
        is_over.set()
        hub.shutdown()
    assert "Traceback" not in command.seen


def test_a_server_that_was_started_to_ignore_ctrl_c_ignores_it_during_imports() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "import sys; sys.argv = ['penstock', '--version'];"
        "import penstock.__main__ as program; import os; os.kill(os.getpid(), signal.SIGINT);"
        "program.main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=dict(os.environ),
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("penstock ")
