"""Penstock's embedded engine beside llama.cpp's own server: same model, threads, slots, one run.

    python -m benchmarks.embedded --streams 1,16 --repeats 3 [--plot FILE]

Both serve the built-in model from a process of their own. A client reads N streams at once for a
while: tokens per second over all of them, time to first token, and the gaps between reads. The two
take turns, so that both see the same machine; medians of the repeats, then the ratio.
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.plot import bars, check
from penstock import __version__
from penstock.engine.llamacpp.hub import find_model

SLOTS = 16
CONTEXT = 1024
THREADS = max(1, (os.cpu_count() or 2) - 1)  # Penstock's default, for both
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}

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
    """What one run of N streams showed. Times in seconds."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def row(self) -> dict[str, float]:
        return {
            "tokens_per_second": round(self.tokens_per_second, 1),
            "ttft_p50_ms": round(1000 * statistics.median(self.first), 2),
            "gap_p99_ms": round(1000 * quantile(self.gaps, 0.99), 2),
        }


@dataclass(frozen=True)
class Target:
    """A server to measure: where it is, how it is asked and how it says that it is done."""

    name: str
    port: int
    path: str
    fields: dict[str, Any]
    end: re.Pattern[bytes]

    def request(self, seed: int) -> bytes:
        body = json.dumps(
            {"prompt": "Once upon a time", "stream": True, "seed": seed, **SAMPLING, **self.fields}
        ).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def llama_server(max_tokens: int) -> Iterator[Target]:
    port = free_port()
    arguments = [str(find_model("rill")), str(port), str(SLOTS), str(SLOTS * CONTEXT), str(THREADS)]
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
        yield Target(
            "llama.cpp's server",
            port,
            "/completion",
            fields,
            re.compile(rb'"stop":true.*?"tokens_predicted":(\d+)', re.S),
        )
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def penstock_server(max_tokens: int) -> Iterator[Target]:
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "penstock", "serve", "--port", str(port)),
            *("--slots", str(SLOTS), "--engine-arg", f"n_ctx={SLOTS * CONTEXT}"),
            *("--engine-arg", f"n_threads={THREADS}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "page and API" not in (line := process.stderr.readline()):
        if not line:
            raise SystemExit("penstock did not start")
    try:
        yield Target(
            "penstock",
            port,
            "/generate",
            {"max_tokens": max_tokens},
            re.compile(rb'"finished":true.*?"completion_tokens":(\d+)', re.S),
        )
    finally:
        process.kill()
        process.wait()


async def read_stream(target: Target, seed: int, measured: Measured) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    began = time.perf_counter()
    writer.write(target.request(seed))
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
    ended = target.end.search(tail)
    if ended is None:
        raise SystemExit(f"{target.name} cut a stream: {tail[-300:]!r}")
    measured.tokens += int(ended[1])


async def measure(target: Target, num_streams: int, seconds: float) -> Measured:
    """Keep `num_streams` streams open for about `seconds`."""
    measured = Measured()
    began = time.perf_counter()
    seeds = iter(range(1, 1_000_000))

    async def reader() -> None:
        while time.perf_counter() - began < seconds:
            await read_stream(target, next(seeds), measured)

    await asyncio.gather(*(reader() for _ in range(num_streams)))
    measured.seconds = time.perf_counter() - began
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", default="1,16", help="how many at once (default: 1,16)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="each measurement lasts this")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--plot", type=Path, help="a picture: .html, .png or .svg")
    arguments = parser.parse_args()
    if arguments.plot:
        check(arguments.plot)
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {p: version(p) for p in ("xllamacpp", "granian")} | {"penstock": __version__},
        "python": platform.python_version(),
        "runs": {},
    }
    with (
        llama_server(arguments.max_tokens) as theirs,
        penstock_server(arguments.max_tokens) as ours,
    ):
        for num_streams in map(int, arguments.streams.split(",")):
            rows: dict[str, list[dict[str, float]]] = {theirs.name: [], ours.name: []}
            for _ in range(arguments.repeats):
                for target in (theirs, ours):
                    measured = asyncio.run(measure(target, num_streams, arguments.seconds))
                    rows[target.name].append(measured.row())
            medians = {
                name: {key: statistics.median(row[key] for row in each) for key in each[0]}
                for name, each in rows.items()
            }
            ratio = (
                medians[ours.name]["tokens_per_second"] / medians[theirs.name]["tokens_per_second"]
            )
            result["runs"][num_streams] = {
                "ratio": round(ratio, 3),
                "medians": medians,
                "repeats": rows,
            }
            print(f"{num_streams} streams: ratio {ratio:.3f}", json.dumps(medians, indent=1))
    print(json.dumps(result))
    if arguments.plot:
        panels: dict[str, dict[str, dict[str, float]]] = {}
        for streams, run in result["runs"].items():
            for server, figures in run["medians"].items():
                for figure, value in figures.items():
                    panels.setdefault(figure, {}).setdefault(server, {})[f"{streams} streams"] = (
                        value
                    )
        caption = f"{result['date']}, {result['machine']}; medians of {arguments.repeats}"
        bars(panels, arguments.plot, "The built-in model: Penstock and llama.cpp's server", caption)


if __name__ == "__main__":
    main()
