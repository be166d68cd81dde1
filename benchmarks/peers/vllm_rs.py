"""vLLM's front end in Rust (`vllm-rs`), with a zero-cost engine core beside it.

The program is in vLLM's wheel since 0.33 and needs nothing else of it. It is not part of this
repository: the benchmark uses it where it is found. `--vllm-rs FILE` or the environment variable
PENSTOCK_VLLM_RS names it; otherwise it is looked for in ~/.cache/penstock/vllm-rs (see `HOW`).
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.overhead.server import PinnedServer, pin
from benchmarks.report import cache_folder
from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent
VARIABLE = "PENSTOCK_VLLM_RS"
TOKEN = "Ġmodel"  # as long as the other engines' " token"; one token of rill's vocabulary
START_LIMIT_S = 60.0
HOW = """\
`vllm-rs` is in vLLM's wheel (330 MB). To get it:
    pip download 'vllm==0.33.*' --no-deps --dest /tmp/vllm
    unzip -o -j /tmp/vllm/vllm-*.whl vllm/vllm-rs -d ~/.cache/penstock
    chmod +x ~/.cache/penstock/vllm-rs"""


def find_vllm_rs() -> Path | None:
    """Return the program, None if this machine has none."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else cache_folder() / "vllm-rs"
    return path if os.access(path, os.X_OK) else None


def token_id(model: Path) -> int:
    """Return the number of `TOKEN` in a model's vocabulary."""
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    return int(tokenizer["model"]["vocab"][TOKEN])


def version_of(program: Path) -> str:
    """Return what the program says about its version."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[-1]


@contextlib.contextmanager
def vllm_rs(program: Path, model: Path) -> Iterator[PinnedServer]:
    """Run the front end on the server's core, and the engine core where this process runs."""
    port, handshake = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context(Path(folder, "log").open("w+", encoding="utf-8"))
        step = f"{folder}/step"
        front = subprocess.Popen(
            [
                *(program, "serve", model, "--served-model-name", "rill", "--port", str(port)),
                # No engine of its own: one that says HELLO at this port.
                *("--data-parallel-size-local", "0", "--data-parallel-rpc-port", str(handshake)),
                "--disable-log-stats",
                # Thousands of connections are open for a while before their requests come.
                *("--http-timeout-keep-alive", "600"),
            ],
            stdout=log,
            stderr=log,
            preexec_fn=pin,
        )
        stack.callback(end, front)
        core = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.peers.engine_core"),
                *(f"tcp://127.0.0.1:{handshake}", step, str(token_id(model))),
            ],
            stderr=log,
            cwd=ROOT,
        )
        stack.callback(end, core)
        try:
            wait_until_healthy(port, front, core)
        except TimeoutError:
            log.seek(0)
            raise SystemExit(f"vllm-rs did not start:\n{log.read()}") from None
        yield PinnedServer(
            port,
            psutil.Process(front.pid),
            step,
            {"vllm-rs": version_of(program)},
            psutil.Process(core.pid),
        )


def wait_until_healthy(port: int, *processes: subprocess.Popen[bytes]) -> None:
    """Poll the front end until it serves. Raises TimeoutError if it does not, or if one ends."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and all(each.poll() is None for each in processes):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        time.sleep(0.05)
    raise TimeoutError


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and wait for its end."""
    process.kill()
    process.wait()
