"""Run vLLM's own server with OpenAI's API, as its documentation starts it.

A server has one address for all its lives: a test kills it and starts it again.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import httpx
import psutil

from tests.support.ports import free_port
from tests.vllm.engines import core_of, group_of

START_LIMIT_S = 600.0  # half a minute, if the machine is not busy
STOP_LIMIT_S = 30.0
READY = "Application startup complete."
NUM_LAST_LINES = 30


class OwnServer:
    """vLLM's own server with the model `model`, which is named like its folder.

    `arguments` are more arguments of vLLM's command, and `niceness` is that of its processes.
    `start` and `until_ready` start it.
    """

    def __init__(self, model: Path, *arguments: str, niceness: int = 0) -> None:
        self.model = model.name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=START_LIMIT_S)
        self._command = [
            *("nice", "-n", str(niceness), sys.executable),
            *("-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", self.model),
            *("--host", "127.0.0.1", "--port", str(self.port), "--disable-uvicorn-access-log"),
            *("--enforce-eager", "--dtype", "float32"),
            *arguments,
        ]
        self._niceness = niceness
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self._begun: SimpleQueue[bool] = SimpleQueue()

    @property
    def is_running(self) -> bool:
        """Return True from the start until the server's own process has ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, in a process group of its own. It may need minutes to be ready."""
        process = self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        # Linux may weigh whole sessions against each other, whatever their processes' niceness.
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text(f"{self._niceness}", encoding="ascii")
        # Each life has its own, so that the end of the one before says nothing about this one.
        self._lines, self._begun = deque(maxlen=NUM_LAST_LINES), SimpleQueue()
        reading = (process, self._lines, self._begun)
        threading.Thread(target=_read, args=reading, daemon=True).start()

    def until_ready(self) -> None:
        """Wait once after `start` until the server is ready. Raises RuntimeError if it ends."""
        with contextlib.suppress(Empty):
            if self._begun.get(timeout=START_LIMIT_S):
                return
        raise RuntimeError("vLLM's own server did not start:\n" + "".join(self._lines))

    def kill(self) -> None:
        """Kill the server with all its processes, as the death of its machine does."""
        self.signal(signal.SIGKILL)
        self._bury()

    def kill_core(self) -> None:
        """Kill the process that runs the model. Then the server ends by itself."""
        assert self._process is not None
        core_of(self._process.pid).kill()
        self._process.wait(STOP_LIMIT_S)
        self._bury()

    def stop(self) -> None:
        """End the server as an operator does, and whatever does not end soon by force."""
        self.client.close()
        if self._process is None:
            return
        group = group_of(self._process.pid)
        self._process.terminate()
        psutil.wait_procs(group, timeout=STOP_LIMIT_S)
        self._bury()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def count(self, metric: str) -> int:
        """Return a gauge or a counter of vLLM's own metrics, such as `num_requests_running`."""
        lines = self.client.get("/metrics").text.splitlines()
        (line,) = [each for each in lines if each.startswith(f"vllm:{metric}{{")]
        return int(float(line.rpartition(" ")[2]))

    def _bury(self) -> None:
        assert self._process is not None
        for each in group_of(self._process.pid):
            each.kill()
        self._process.wait()
        self._process = None


def _read(process: subprocess.Popen[str], last_lines: deque[str], begun: SimpleQueue[bool]) -> None:
    """Read what a server says, so that it never waits for room in the pipe."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            last_lines.append(line)
            if READY in line:
                begun.put(True)
    begun.put(False)


@contextlib.contextmanager
def own_servers(
    number: int, model: Path, *arguments: str, niceness: int = 0
) -> Iterator[list[OwnServer]]:
    """Run several servers, which start at once, and yield them when all are ready."""
    servers = [OwnServer(model, *arguments, niceness=niceness) for _ in range(number)]
    try:
        for each in servers:
            each.start()
        for each in servers:
            each.until_ready()
        yield servers
    finally:
        for each in servers:
            each.stop()
