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
from benchmarks.peers.vllm_rs import vllm_rs
from benchmarks.report import cache_folder

ROOT = Path(__file__).parent.parent.parent
CRLF_END = b"\r\n\r\n"

COMPLETIONS = "Penstock, /v1/completions"
NATIVE = "Penstock, /generate"
FLOOR = "a bare socket"
VLLM_RS = "vLLM's server in Rust"
VLLM = "vLLM's server in Python"
FASTAPI = "FastAPI, sse-starlette, pydantic"


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
    stamps = sorted(cache_folder().glob("vllm-*/complete"), key=lambda each: each.stat().st_mtime)
    return str(stamps[-1].parent / "bin" / "python") if stamps else None


@contextlib.contextmanager
def hub_model() -> Iterator[Path]:
    """Make a model's folder for vLLM's servers, which read the configuration and the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training.export", "hf", "--out", folder]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        yield Path(folder)


def peers(model: Path, rust: Path | None, vllm: str | None) -> dict[str, Peer]:
    """Return the servers to compare, by the names of `--peers`.

    `rust`: the program vllm-rs. `vllm`: the Python of vLLM's environment. Without them, their
    servers are left out.
    """

    def ours() -> contextlib.AbstractContextManager[PinnedServer]:
        return penstock_server("Stepped", eager="true")

    found = {
        "completions": Peer(COMPLETIONS, ours, "/v1/completions"),
        "native": Peer(NATIVE, ours),
        "floor": Peer(FLOOR, lambda: module("floor")),
    }
    if rust is not None:
        found["vllm-rs"] = Peer(VLLM_RS, lambda: vllm_rs(rust, model), "/v1/completions")
    found["fastapi"] = Peer(FASTAPI, lambda: module("usual"), event_end=CRLF_END)
    if vllm is not None:
        start = lambda: module("vllm_frontend", str(model), python=vllm)  # noqa: E731
        found["vllm"] = Peer(VLLM, start, "/v1/completions", {"ignore_eos": True})
    return found
