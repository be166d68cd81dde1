"""A real Penstock, in a process of its own, on a free port: for every test over a socket."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

STOP_TIMEOUT_S = 15
HURRY_AFTER_S = 0.5  # two signals at once may be one to the process


@dataclass
class RunningServer:
    """A server that answers. `output` grows with what it writes to its standard error."""

    url: str
    process: subprocess.Popen[str]
    output: list[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    @property
    def pid(self) -> int:
        return self.process.pid

    def engine_pid(self) -> int:
        """The process of its engine."""
        (engine,) = psutil.Process(self.pid).children()
        return int(engine.pid)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def start(*arguments: str, module: object = "penstock", **flags: object) -> subprocess.Popen[str]:
    """`penstock serve` with these flags (mock_interval=0.01 is --mock-interval 0.01).

    `module` is run in penstock's stead: one that changes something, and then runs it.
    """
    command = [sys.executable, "-m", str(module), "serve", *arguments]
    for name, value in {"port": 0, **flags}.items():
        values = value if isinstance(value, list) else [value]
        for each in values:
            command += [f"--{name.replace('_', '-')}", str(each)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@contextlib.contextmanager
def serve(*arguments: str, module: object = "penstock", **flags: object) -> Iterator[RunningServer]:
    """A server that is ready; it is stopped, and must end cleanly, when the context ends.

    `serve(engine="mock", mock_interval=0.01)`; the built-in model without flags. A test that ends
    the server itself may: then how it ended is for the test to check.
    """
    process = start(*arguments, module=module, **flags)
    assert process.stderr is not None
    output: list[str] = []
    url = ""
    for line in process.stderr:
        output.append(line)
        if found := re.search(r'(?:page and API\s+|"url": ")(https?://[^\s"]+)', line):
            url = found[1]
            break
    else:
        process.wait()
        process.stderr.close()
        raise AssertionError("the server did not start:\n" + "".join(output))
    # Goes on reading, so that the server never waits for room in the pipe.
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
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(HURRY_AFTER_S)
            process.send_signal(signal.SIGTERM)  # without waiting for open streams
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
