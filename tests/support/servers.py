"""Start a real Penstock in its own process, on a free port, for tests over a socket."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from tests.support.raw import ask, request
from tests.support.waiting import eventually

START_TIMEOUT_S = 60  # only so that a hung test ends
STOP_TIMEOUT_S = 40
# The kernel may merge two signals that come at once, and so may the loop of a server that gets no
# time: then the third one is the second.
HURRY_AFTER_S = (0.5, 5.0)


@dataclass
class RunningServer:
    """A server that answers. `output` collects the lines of its standard error."""

    url: str
    process: subprocess.Popen[str]
    output: list[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        return (urlsplit(self.url).hostname or "", self.port)

    @property
    def pid(self) -> int:
        return self.process.pid

    def engine_pid(self) -> int:
        """Return the process id of the engine; wait for it if it is being restarted."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [each.pid for each in psutil.Process(self.pid).children() if _runs(each)]
            return len(found) == 1

        assert eventually(is_there), found
        return found[0]

    def readiness(self) -> int:
        """Return the status of `/health/ready`."""
        return ask(self.port, request("GET", "/health/ready"), self.address[0]).status

    def has_said(self, words: str) -> bool:
        """Wait until the log has `words`, which a thread collects."""
        return eventually(lambda: words in "".join(self.output))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def start(
    *arguments: str, module: object = "penstock", program: object = "", **flags: object
) -> subprocess.Popen[str]:
    """Run `penstock serve` with these flags (mock_interval=0.01 becomes --mock-interval 0.01).

    No token is held back unless a flag says so: `pace` is 0, and None leaves the flag out.

    `module` names the module to run instead of penstock: it changes something, then runs penstock.
    `program` is the command that runs Penstock instead.
    """
    command = str(program).split() or [sys.executable, "-m", str(module)]
    command += ["serve", *arguments]
    for name, value in {"port": 0, "pace": 0, **flags}.items():
        values = value if isinstance(value, list) else [value]
        if value is None:
            continue
        for each in values:
            flag = f"--{name.replace('_', '-')}"
            command += [flag] if each is True else [flag, str(each)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def refuses_to_start(*arguments: str, **flags: object) -> str:
    """Return what a server that cannot start writes: the reason, and the next step."""
    with start(*arguments, **flags) as process:
        _, said = process.communicate(timeout=START_TIMEOUT_S)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 2, said
    return said


@contextlib.contextmanager
def serve(
    *arguments: str, module: object = "penstock", program: object = "", **flags: object
) -> Iterator[RunningServer]:
    """Yield a server that is ready. When the context ends, stop it and check that it ends cleanly.

    Example: `serve(engine="mock", mock_interval=0.01)`. Without flags it serves the built-in model.
    A test may end the server itself: then the test checks how it ended.
    """
    process = start(*arguments, module=module, program=program, **flags)
    with _running(process, _ready_url) as server:
        yield server


@contextlib.contextmanager
def serve_early(**flags: object) -> Iterator[RunningServer]:
    """Yield a server that listens, whether it is ready or not. Otherwise like `serve`."""
    process = start(**flags)
    with _running(process, lambda process, output: _listening_url(process)) as server:
        yield server


def _ready_url(process: subprocess.Popen[str], output: list[str]) -> str:
    """Return the URL that a server tells when it is ready, "" if it ends before."""
    assert process.stderr is not None
    for line in process.stderr:
        output.append(line)
        if found := re.search(r'(?:page and API\s+|"url": ")(https?://[^\s"]+)', line):
            return found[1]
    return ""


def _listening_url(process: subprocess.Popen[str]) -> str:
    """Return the URL at which a server's process listens, "" if it does not."""

    def ports() -> list[int]:
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(process.pid).net_connections("tcp4")
            return [each.laddr.port for each in found if each.status == psutil.CONN_LISTEN]
        return []

    eventually(lambda: bool(ports()) or process.poll() is not None, START_TIMEOUT_S)
    return f"http://127.0.0.1:{ports()[0]}" if ports() else ""


@contextlib.contextmanager
def _running(
    process: subprocess.Popen[str], url_of: Callable[[subprocess.Popen[str], list[str]], str]
) -> Iterator[RunningServer]:
    """Yield the server in this process once `url_of` finds its URL; stop it at the end.

    `url_of` may read standard error, and puts its lines into the list.
    """
    assert process.stderr is not None
    output: list[str] = []
    url = url_of(process, output)
    if not url:
        process.kill()
        output += process.stderr
        process.wait()
        process.stderr.close()
        raise AssertionError("the server did not start:\n" + "".join(output))
    # Keep reading, so that the server never waits for room in the pipe.
    stderr = process.stderr
    collector = threading.Thread(target=lambda: output.extend(stderr), daemon=True)
    collector.start()
    server = RunningServer(url, process, output)
    try:
        yield server
    finally:
        ended_before = process.poll() is not None
        if not ended_before:
            process.send_signal(signal.SIGTERM)
            for patience in HURRY_AFTER_S:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience)
                process.send_signal(signal.SIGTERM)  # the second one does not wait for open streams
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError("the server did not stop:\n" + "".join(output)) from None
        finally:
            collector.join(5)
            stderr.close()
    assert ended_before or process.returncode == 0, "".join(output)


@contextlib.contextmanager
def serve_terse_mock() -> Iterator[RunningServer]:
    """Run a server whose answers have 12 tokens, in a context of 50."""
    arguments = ["length=12", "context_length=50"]
    with serve(engine="mock", mock_interval=0, model_name="rill", engine_arg=arguments) as running:
        yield running
