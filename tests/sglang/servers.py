"""Real SGLang servers, each in processes of its own."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ports import free_port

LAUNCH = Path(__file__).parent / "launch.py"
READY = "The server is fired up and ready to roll!"
START_S = 600
CONTEXT = 1024


@dataclass
class Server:
    """One server. `log` has the lines that it has written; a thread reads them."""

    url: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.log.append(line)
                if READY in line:
                    self.ready.set()
        self.ready.set()  # it has ended: nobody needs to wait any more

    def wait(self) -> None:
        """Wait until the server answers."""
        is_there = self.ready.wait(START_S) and self.process.poll() is None
        assert is_there, "SGLang did not start:\n" + "".join(self.log[-40:])

    def kill(self) -> None:
        """Kill all of its processes with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()


@contextlib.contextmanager
def servers(number: int, model: Path, *arguments: str) -> Iterator[list[Server]]:
    """Run servers of a model, which start side by side."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        started = [_started(model, home, arguments) for _ in range(number)]
        try:
            for each in started:
                each.wait()
            yield started
        finally:
            for each in started:
                each.kill()


def _started(model: Path, home: str, arguments: tuple[str, ...]) -> Server:
    port = free_port()
    flags = {
        "model-path": str(model),
        "served-model-name": model.name,
        "port": port,
        "device": "cpu",
        "attention-backend": "torch_native",
        "dtype": "float32",
        "max-total-tokens": 8 * CONTEXT,
    }
    settings = {
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": home,  # SGLang writes there
    }
    python = Path(os.environ["TEST_SGLANG"]) / "bin" / "python"
    process = subprocess.Popen(
        [
            *(str(python), str(LAUNCH), "--disable-overlap-schedule", "--enable-metrics"),
            *(f"--{name}={value}" for name, value in flags.items()),
            *arguments,
        ],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that `kill` reaches its scheduler, too
    )
    return Server(f"http://127.0.0.1:{port}", process)
