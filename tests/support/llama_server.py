"""Run llama.cpp's own server on TCP, with the built-in model unless another is named.

`python -m tests.support.llama_server` prints its port when it answers, and runs until it is
killed. With `--deadly FILE` it kills itself in the middle of an answer if the file exists: a busy
test would kill it late, when a small model has written the whole answer.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.engine.llamacpp.hub import find_model
from tests.support.ports import free_port

SLOTS = 4
EVENT = b"data: "
DEADLY_EVENT = 8
"""At so many events of answers, counted from when the file exists, the server dies."""


@dataclass
class LlamaServer:
    url: str
    process: subprocess.Popen[str]
    deadly: Path | None = None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def die_in_the_next_answer(self) -> None:
        """Have the server kill itself in the middle of the next answer."""
        assert self.deadly is not None, "it is not mortal"
        self.deadly.touch()


@contextlib.contextmanager
def llama_server(
    *, model: Path | None = None, port: int = 0, is_mortal: bool = False
) -> Iterator[LlamaServer]:
    """Run a server in its own process; port 0 means any that is free.

    If it `is_mortal`, it can be told to die in an answer.
    """
    # Only this process knows which ports it has given away.
    command = [sys.executable, "-m", __name__, "--port", str(port or free_port())]
    if model is not None:
        command += ["--model", str(model)]
    with tempfile.TemporaryDirectory() as folder:
        deadly = Path(folder, "deadly") if is_mortal else None
        if deadly is not None:
            command += ["--deadly", str(deadly), "--inner-port", str(free_port())]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said.isdigit(), "llama.cpp's server did not start"
        try:
            yield LlamaServer(f"http://127.0.0.1:{said}", process, deadly)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


class Mortal:
    """Relays connections to the server at another port of this process, until an answer is deadly.

    Nothing of a deadly answer leaves this process after the event at which it dies.
    """

    def __init__(self, inner: int, deadly: Path) -> None:
        self._inner = inner
        self._deadly = deadly
        self._num_events = 0

    async def serve(self, port: int) -> None:
        """Relay what comes to `port`, and print it."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", port, backlog=512)
        print(port, flush=True)
        await server.serve_forever()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._inner)
        sending = asyncio.create_task(self._send(reader, their_writer))
        with contextlib.suppress(OSError):
            while data := await their_reader.read(65536):
                self._pass_on(data, writer)
                await writer.drain()
        sending.cancel()
        for each in (writer, their_writer):
            each.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
            writer.write_eof()  # as a client says that it leaves

    def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if not self._deadly.exists():
            writer.write(data)
            return
        begin, *events = data.split(EVENT)
        writer.write(begin)
        for event in events:
            self._num_events += 1
            if self._num_events == DEADLY_EVENT:
                os.kill(os.getpid(), signal.SIGKILL)
            writer.write(EVENT + event)


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=find_model("rill"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--deadly", type=Path)
    parser.add_argument("--inner-port", type=int, default=0)
    options = parser.parse_args()
    port = options.port or free_port()
    inner = (options.inner_port or free_port()) if options.deadly else port
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.n_parallel = SLOTS
    params.n_ctx = 1024 * SLOTS
    params.cpuparams.n_threads = 1
    params.ui = False
    params.hostnames = ["127.0.0.1"]
    params.port = inner
    params.endpoint_slots = True
    params.ctx_shift = False
    server = xllamacpp.Server(params)
    if options.deadly:
        asyncio.run(Mortal(inner, options.deadly).serve(port))
    print(port, flush=True)
    signal.pause()
    del server


if __name__ == "__main__":
    main()
