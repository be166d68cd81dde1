"""The servers that are compared, each in a process of its own on a core of its own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.overhead.__main__ import SERVER_CORE, penstock
from benchmarks.overhead.client import EVENT_END
from penstock import __version__

ROOT = Path(__file__).parent.parent.parent
CRLF_END = b"\r\n\r\n"


@dataclass
class Running:
    """A server that waits for streams and steps."""

    port: int
    process: psutil.Process
    step: str
    versions: dict[str, str]

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: of the server's process, and of its children's beside it."""
        ours, *others = (_cpu_s(each) for each in [self.process, *self.process.children(True)])
        return ours, sum(others)

    def rss(self) -> int:
        """Resident memory of the server's process, in bytes."""
        return int(self.process.memory_info().rss)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True)
class Peer:
    """What is compared: how it is started, and how it is asked."""

    name: str
    start: Callable[[], contextlib.AbstractContextManager[Running]]
    path: str = "/generate"
    fields: dict[str, object] = field(default_factory=dict)
    event_end: bytes = EVENT_END


@contextlib.contextmanager
def ours() -> Iterator[Running]:
    """Penstock; its engine is a child on the client's core, as costless as the others' own."""
    with penstock("Stepped") as server:
        versions = {name: version(name) for name in ("granian", "uvloop")}
        versions["penstock"] = __version__
        yield Running(server.port, server.process, server.step, versions)


@contextlib.contextmanager
def module(name: str, *arguments: str, python: str = sys.executable) -> Iterator[Running]:
    """One of this package's servers."""
    with tempfile.TemporaryDirectory() as folder:
        step = f"{folder}/step"
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{name}", step, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith('{"port"'):
                    said = json.loads(line)
                    break
            else:
                raise SystemExit(f"{name} did not start")
            yield Running(said["port"], psutil.Process(process.pid), step, said["versions"])
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def find_vllm() -> str | None:
    """The Python of vLLM's environment that was used last, where there is one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    stamps = sorted(cache.glob("vllm-*/complete"), key=lambda each: each.stat().st_mtime)
    return str(stamps[-1].parent / "bin" / "python") if stamps else None


@contextlib.contextmanager
def vllm_model(python: str) -> Iterator[Path]:
    """A model's folder for vLLM: it reads the configuration and the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "training.export", "hf", "--out", folder]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        yield Path(folder)


def peers(vllm: str | None, model: Path | None) -> list[Peer]:
    """All of them; vLLM's server where there is one."""
    found = [
        Peer("Penstock", ours),
        Peer("Penstock, /v1/completions", ours, "/v1/completions"),
        Peer("FastAPI, sse-starlette, pydantic", lambda: module("usual"), event_end=CRLF_END),
        Peer("a bare socket", lambda: module("floor")),
    ]
    if vllm is not None and model is not None:
        start = lambda: module("vllm_frontend", str(model), python=vllm)  # noqa: E731 - in its place
        found.append(Peer("vLLM's server", start, "/v1/completions", {"ignore_eos": True}))
    return found
