"""A server pinned to its own core, so that its CPU time and its memory can be measured alone."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.report import cpu_s, versions

SERVER_CORE, OTHER_CORE = 0, 1


@dataclass
class PinnedServer:
    """A running server. `step`: the socket on which its engine listens for the next step.

    `engine`: the engine's process, if the server is not its parent.
    """

    port: int
    process: psutil.Process
    step: str
    versions: dict[str, str]
    engine: psutil.Process | None = None

    def cpu_s(self) -> float:
        """Return the CPU seconds that the server's process has used, without its children's."""
        return cpu_s(self.process)

    def engine_cpu_s(self) -> float:
        """Return the CPU seconds that the engine and the server's other children have used."""
        others = self.process.children(recursive=True) + ([self.engine] if self.engine else [])
        return sum(cpu_s(each) for each in others)

    def rss(self) -> int:
        """Return the resident memory of the server's process, in bytes."""
        return int(self.process.memory_info().rss)


@contextlib.contextmanager
def penstock_server(engine: str, **engine_args: object) -> Iterator[PinnedServer]:
    """Run Penstock with an engine of `benchmarks.overhead.engine`, which runs on the other core."""
    with tempfile.TemporaryDirectory() as folder:
        step = f"{folder}/step"
        engine_args = {"core": OTHER_CORE, **engine_args}
        if engine in ("Stepped", "Free"):
            engine_args["socket"] = step
        command = [sys.executable, "-m", "penstock", "serve", "--port", "0"]
        command += ["--engine", f"benchmarks.overhead.engine:{engine}"]
        command += ["--max-connections", "20000"]
        for name, value in engine_args.items():
            command += ["--engine-arg", f"{name}={value}"]
        log = Path(folder, "log")  # a file: nobody would empty a pipe while the client measures
        with log.open("wb") as output:
            process = subprocess.Popen(command, stderr=output, preexec_fn=pin)
        try:
            while not (found := re.search(r"page and API\s+http://\S+:(\d+)", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(f"the server did not start: {log.read_text()}")
                time.sleep(0.05)
            packages = versions(("granian", "uvloop"))
            yield PinnedServer(int(found[1]), psutil.Process(process.pid), step, packages)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.terminate()
            process.wait()


def pin() -> None:
    """Pin this process to the server's core."""
    os.sched_setaffinity(0, {SERVER_CORE})
