"""Compares Penstock's embedded engine with llama.cpp's own server: same model, threads and slots.

    python -m benchmarks.embedded --streams 1,16 --repeats 3 [--plot FILE]
    python -m benchmarks.embedded --model model.gguf

Both servers run one model, by default the built-in one, each in its own process. A client reads N
streams at once for a few seconds and measures the total tokens per second, the time to first token,
and the gaps between reads. The servers take turns, so that both see the same machine. The output is
the medians of the repeats and their ratio. `benchmarks.peers` includes this comparison.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.noise import Noise, table
from benchmarks.plot import bars, check
from benchmarks.report import Numbers, circumstances, medians, quantile
from penstock.engine.catalog import BUILT_IN_MODEL
from penstock.engine.llamacpp.hub import find_model
from tests.support.ports import free_port
from tests.support.raw import post
from tests.support.servers import serve

SLOTS = 16
CONTEXT = 1024
THREADS = max(1, (os.cpu_count() or 2) - 1)  # Penstock's default, for both
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}

OURS, THEIRS = "Penstock's embedded engine", "llama.cpp's server"

LLAMA_SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx = int(sys.argv[3]), int(sys.argv[4])
params.n_threads_http = params.n_parallel + 4
params.cpuparams.n_threads = int(sys.argv[5])
params.cache_ram_mib = 0
server = xllamacpp.Server(params)
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass
class Measured:
    """The measurements of one run of N streams. Times in seconds."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def row(self) -> Numbers:
        return {
            "tokens_per_second": round(self.tokens_per_second, 1),
            "ttft_p50_ms": round(1000 * statistics.median(self.first), 2),
            "gap_p99_ms": round(1000 * quantile(self.gaps, 0.99), 2),
        }


@dataclass(frozen=True)
class MeasuredServer:
    """A server to measure: its port, and its API.

    `fields`: fields of the request's body. `end`: matches the end of a stream, with the number of
    tokens as its group.
    """

    name: str
    port: int
    path: str
    fields: dict[str, Any]
    end: re.Pattern[bytes]

    def request(self, seed: int) -> bytes:
        body = json.dumps(
            {"prompt": "Once upon a time", "stream": True, "seed": seed, **SAMPLING, **self.fields}
        ).encode()
        return post(body, "Connection: close", path=self.path)


@contextlib.contextmanager
def llama_server(model: str, max_tokens: int) -> Iterator[MeasuredServer]:
    port = free_port()
    arguments = [str(find_model(model)), str(port), str(SLOTS), str(SLOTS * CONTEXT), str(THREADS)]
    process = subprocess.Popen(
        [sys.executable, "-c", LLAMA_SERVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    fields = {"n_predict": max_tokens, "samplers": ["top_k", "top_p", "temperature"]}
    try:
        yield MeasuredServer(
            THEIRS,
            port,
            "/completion",
            fields,
            re.compile(rb'"stop":true.*?"tokens_predicted":(\d+)', re.S),
        )
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def penstock_server(model: str, max_tokens: int) -> Iterator[MeasuredServer]:
    arguments = [f"n_ctx={SLOTS * CONTEXT}", f"n_threads={THREADS}"]
    with serve(model=model, slots=SLOTS, engine_arg=arguments) as server:
        yield MeasuredServer(
            OURS,
            server.port,
            "/generate",
            {"max_tokens": max_tokens},
            re.compile(rb'"finished":true.*?"completion_tokens":(\d+)', re.S),
        )


async def read_stream(server: MeasuredServer, seed: int, measured: Measured) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    began = time.perf_counter()
    writer.write(server.request(seed))
    tail, last = b"", 0.0
    while data := await reader.read(65536):
        now = time.perf_counter()
        if b"data: " in data:
            if last:
                measured.gaps.append(now - last)
            else:
                measured.first.append(now - began)
            last = now
        tail = (tail + data)[-8192:]
    writer.close()
    ended = server.end.search(tail)
    if ended is None:
        raise SystemExit(f"{server.name} cut a stream: {tail[-300:]!r}")
    measured.tokens += int(ended[1])


async def measure(server: MeasuredServer, num_streams: int, seconds: float) -> Measured:
    """Keep `num_streams` streams open for about `seconds`, and measure them."""
    measured = Measured()
    began = time.perf_counter()
    seeds = iter(range(1, 1_000_000))

    async def reader() -> None:
        while time.perf_counter() - began < seconds:
            await read_stream(server, next(seeds), measured)

    await asyncio.gather(*(reader() for _ in range(num_streams)))
    measured.seconds = time.perf_counter() - began
    return measured


def compare(
    counts: list[int],
    repeats: int,
    seconds: float,
    max_tokens: int,
    before_turn: Callable[[], object] = lambda: None,
    model: str = BUILT_IN_MODEL,
) -> Iterator[tuple[int, str, Numbers]]:
    """Measure both servers in turns. Yields the number of streams, the server and its figures."""
    with llama_server(model, max_tokens) as theirs, penstock_server(model, max_tokens) as ours:
        for _ in range(repeats):
            for num_streams in counts:
                for server in (ours, theirs):
                    before_turn()
                    measured = asyncio.run(measure(server, num_streams, seconds))
                    yield num_streams, server.name, measured.row()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--streams", default="1,16", help="numbers of streams at once")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each server")
    parser.add_argument("--seconds", type=float, default=6.0, help="duration of a measurement")
    parser.add_argument("--max-tokens", type=int, default=256, help="token limit of an answer")
    parser.add_argument(
        "--model", default=BUILT_IN_MODEL, help="the built-in model, or a GGUF file"
    )
    parser.add_argument("--plot", type=Path, help="save a plot as .html, .png or .svg")
    arguments = parser.parse_args()
    if arguments.plot:
        check(arguments.plot)
    noise = Noise({f"core {core}": core for core in sorted(os.sched_getaffinity(0))})
    counts = [int(each) for each in arguments.streams.split(",")]
    rows: dict[int, dict[str, list[Numbers]]] = {}
    for num_streams, name, row in compare(
        *(counts, arguments.repeats, arguments.seconds, arguments.max_tokens),
        *(noise.sample, arguments.model),
    ):
        rows.setdefault(num_streams, {}).setdefault(name, []).append(row)
    runs: dict[int, dict[str, Any]] = {}
    for num_streams, by_server in rows.items():
        found = {name: medians(each) for name, each in by_server.items()}
        ratio = found[OURS]["tokens_per_second"] / found[THEIRS]["tokens_per_second"]
        first = found[OURS]["ttft_p50_ms"] / found[THEIRS]["ttft_p50_ms"]
        runs[num_streams] = {"ratio": round(ratio, 3), "medians": found, "repeats": by_server}
        print(f"{num_streams} streams: tokens/s {ratio:.3f}, first token {first:.2f} of theirs")
        print(json.dumps(found, indent=1))
    result = {**circumstances("benchmarks.embedded"), "noise": noise.report(), "runs": runs}
    print(table(result["noise"]))
    print(json.dumps(result))
    if arguments.plot:
        panels: dict[str, dict[str, dict[str, float]]] = {}
        for streams, run in runs.items():
            for name, figures in run["medians"].items():
                for figure, value in figures.items():
                    series = panels.setdefault(figure, {}).setdefault(name, {})
                    series[f"{streams} streams"] = value
        caption = f"{result['date']}, {result['machine']}; medians of {arguments.repeats}"
        title = f"{Path(arguments.model).stem}: Penstock and llama.cpp's server"
        bars(panels, arguments.plot, title, caption)


if __name__ == "__main__":
    main()
