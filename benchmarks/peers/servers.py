"""The servers to compare, each in its own process on its own core."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.overhead.client import EVENT_END
from benchmarks.overhead.server import PinnedServer, penstock_server, pin

ROOT = Path(__file__).parent.parent.parent
CRLF_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Peer:
    """A server to compare: how to start it, and its API.

    `fields`: fields of the request's body. `event_end`: the bytes that end an event.
    """

    name: str
    start: Callable[[], contextlib.AbstractContextManager[PinnedServer]]
    path: str = "/generate"
    fields: dict[str, object] = field(default_factory=dict)
    event_end: bytes = EVENT_END


@contextlib.contextmanager
def module(name: str, *arguments: str, python: str = sys.executable) -> Iterator[PinnedServer]:
    """Run a server that is a module of this package."""
    with tempfile.TemporaryDirectory() as folder:
        step = f"{folder}/step"
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{name}", step, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=pin,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith('{"port"'):
                    said = json.loads(line)
                    break
            else:
                raise SystemExit(f"{name} did not start")
            yield PinnedServer(said["port"], psutil.Process(process.pid), step, said["versions"])
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def find_vllm() -> str | None:
    """Return the Python of the latest vLLM environment, None without an environment."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    stamps = sorted(cache.glob("vllm-*/complete"), key=lambda each: each.stat().st_mtime)
    return str(stamps[-1].parent / "bin" / "python") if stamps else None


@contextlib.contextmanager
def vllm_model(python: str) -> Iterator[Path]:
    """Make a model's folder for vLLM, which reads the configuration and the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "training.export", "hf", "--out", folder]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        yield Path(folder)


def peers(vllm: str | None, model: Path | None) -> list[Peer]:
    """Return the servers to compare, with vLLM's server if `vllm` and `model` are given."""

    def ours() -> contextlib.AbstractContextManager[PinnedServer]:
        return penstock_server("Stepped")

    found = [
        Peer("Penstock", ours),
        Peer("Penstock, /v1/completions", ours, "/v1/completions"),
        Peer("FastAPI, sse-starlette, pydantic", lambda: module("usual"), event_end=CRLF_END),
        Peer("a bare socket", lambda: module("floor")),
    ]
    if vllm is not None and model is not None:
        start = lambda: module("vllm_frontend", str(model), python=vllm)  # noqa: E731
        found.append(Peer("vLLM's server", start, "/v1/completions", {"ignore_eos": True}))
    return found
