"""Run llama.cpp's own server on TCP, with the built-in model unless another is named.

`python -m tests.support.llama_server` prints its port when it answers, and runs until it is
killed.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.engine.llamacpp.hub import find_model
from tests.support.ports import free_port

SLOTS = 4


@dataclass
class LlamaServer:
    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def llama_server(*, model: Path | None = None, port: int = 0) -> Iterator[LlamaServer]:
    """Run a server in its own process; port 0 means any that is free."""
    command = [sys.executable, "-m", __name__, "--port", str(port)]
    if model is not None:
        command += ["--model", str(model)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    assert said.isdigit(), "llama.cpp's server did not start"
    try:
        yield LlamaServer(f"http://127.0.0.1:{said}", process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=find_model("rill"))
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    port = options.port or free_port()
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.n_parallel = SLOTS
    params.n_ctx = 1024 * SLOTS
    params.cpuparams.n_threads = 1
    params.ui = False
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.endpoint_slots = True
    params.ctx_shift = False
    server = xllamacpp.Server(params)
    print(port, flush=True)
    signal.pause()
    del server


if __name__ == "__main__":
    main()
