"""Measures what Penstock costs between an engine and a socket: CPU per token, latency, memory.

    python -m benchmarks.overhead [--repeats 3] [--only lockstep] [--out results.json] [--plot FILE]

The server runs alone on core 0. A zero-cost engine (see `engine`) and a client with little overhead
share core 1. CPU is the CPU time that the operating system counts for the server's process.

- lockstep: every stream gets exactly one token per step, and the next step begins when the client
  has received all of them. Each token is one event and one write; nothing can be merged.
- free: the engine gives every stream tokens as fast as it can. Tokens that are ready together are
  sent together.
- paced: every stream gets tokens at a steady rate. Each token is the time at which the engine
  pushed it, so the client can compute the latency that Penstock added.
- first: the time from sending a request to its first token, while other streams are open.
- request: the cost of a request for one token: its connection, its answer, its log line.
- idle: the memory of the server's process for each open stream without tokens.
- machine: how much a sleep of one millisecond overruns on the server's core while nothing else
  runs. Lower latencies cannot be measured, so compare the other latencies with it.

The output is one line for each run, with the medians of its repeats, and JSON with the machine and
the versions.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.overhead.client import (
    LOCKSTEP_TOKENS,
    ClientStreams,
    first_token,
    kib_per_stream,
    request,
)
from benchmarks.overhead.server import OTHER_CORE, PinnedServer, penstock_server, pin
from benchmarks.plot import bars, check
from benchmarks.report import Numbers, circumstances, medians, quantile
from penstock.server import raise_file_limit

FREE_TOKENS = 1024
NUM_REQUESTS = 500
NUM_SLEEPS = 2000
PACED_SECONDS = 8
PATH = "/generate"


def lockstep(num_streams: int, path: str = PATH) -> Numbers:
    """Measure tokens per second and CPU per token, with one write for each token."""
    with penstock_server("Stepped") as server:
        fields: dict[str, object] = {"max_tokens": LOCKSTEP_TOKENS}
        streams = ClientStreams(server.port, num_streams, request(path, fields))
        num_steps = LOCKSTEP_TOKENS - 1  # the last token comes with the terminal event

        def run() -> float:
            return streams.lockstep(server.step, num_steps).seconds

        figures = throughput(server, run, num_streams * num_steps)
        streams.close()
    return figures


def free(num_streams: int) -> Numbers:
    """Measure tokens per second and CPU per token, with as many tokens per write as possible."""
    with penstock_server("Free") as server:
        data = request(PATH, {"max_tokens": FREE_TOKENS}, connection="close")
        streams = ClientStreams(server.port, num_streams, data)
        run = partial(streams.free, server.step)
        figures = throughput(server, run, num_streams * FREE_TOKENS)
        streams.close()
    return figures


def throughput(
    server: PinnedServer, run: Callable[[], float], number: int, unit: str = "token"
) -> Numbers:
    """Measure a `run` that brings `number` tokens (or other units) and returns its seconds."""
    cpu = server.cpu_s()
    seconds = run()
    cpu = server.cpu_s() - cpu
    return {f"{unit}s_per_second": number / seconds, f"cpu_us_per_{unit}": 1e6 * cpu / number}


def paced(num_streams: int, rate: int) -> Numbers:
    """Measure the latency of tokens from the engine's push to the client, in milliseconds."""
    with penstock_server("Paced", rate=rate) as server:
        fields: dict[str, object] = {"max_tokens": min(1024, rate * PACED_SECONDS)}
        streams = ClientStreams(server.port, num_streams, request(PATH, fields))
        latencies: list[int] = []
        stamp = re.compile(rb'"token":" (\d+)"')

        began = time.monotonic_ns()

        def take(data: bytes) -> None:
            now = time.monotonic_ns()
            pushed = map(int, stamp.findall(data))
            # Skip tokens that waited while the streams were being opened.
            latencies.extend(now - each for each in pushed if each >= began)

        until = time.monotonic() + PACED_SECONDS - 1
        cpu = server.cpu_s()
        streams.each_piece(lambda: time.monotonic() > until, take)
        cpu = server.cpu_s() - cpu
        streams.close()
    latencies.sort()
    return {
        "mean_ms": statistics.fmean(latencies) / 1e6,
        "p50_ms": quantile(latencies, 0.5) / 1e6,
        "p99_ms": quantile(latencies, 0.99) / 1e6,
        "cpu_us_per_token": 1e6 * cpu / len(latencies),
    }


def first(num_streams: int) -> Numbers:
    """Measure the time to the first token while other streams are open."""
    with penstock_server("Paced", rate=50, eager="true") as server:
        others = ClientStreams(server.port, num_streams - 1, request(PATH, {"max_tokens": 1024}))
        data = request(PATH, {"max_tokens": 1})
        times = sorted(first_token(server.port, data) for _ in range(NUM_REQUESTS))
        others.close()
    return {"p50_ms": 1e3 * quantile(times, 0.5), "p99_ms": 1e3 * quantile(times, 0.99)}


def one_token(path: str) -> Numbers:
    """Measure requests for one token, one after another."""
    with penstock_server("Paced", rate=50, eager="true") as server:
        data = request(path, {"max_tokens": 1})
        first_token(server.port, data)  # so that everything made on first use exists

        def run() -> float:
            began = time.monotonic()
            for _ in range(NUM_REQUESTS):
                first_token(server.port, data)
            return time.monotonic() - began

        return throughput(server, run, NUM_REQUESTS, "request")


def machine() -> Numbers:
    """Measure the latency that the machine itself adds, in milliseconds."""
    pin()
    overruns = []
    for _ in range(NUM_SLEEPS):
        began = time.perf_counter()
        time.sleep(0.001)
        overruns.append(1e3 * (time.perf_counter() - began) - 1)
    os.sched_setaffinity(0, {OTHER_CORE})
    overruns.sort()
    return {"p50_ms": quantile(overruns, 0.5), "p99_ms": quantile(overruns, 0.99)}


def idle(num_streams: int) -> Numbers:
    """Measure the memory of the server's process for each open stream."""
    with penstock_server("Stepped") as server:
        data = request(PATH, {"max_tokens": 1024})
        return {"kib_per_stream": kib_per_stream(server.port, server.rss, data, num_streams)}


RUNS: dict[str, list[tuple[str, Callable[[], Numbers]]]] = {
    "lockstep": [
        ("lockstep, 64 streams", lambda: lockstep(64)),
        ("lockstep, 256 streams", lambda: lockstep(256)),
        ("lockstep, 1,024 streams", lambda: lockstep(1024)),
        ("lockstep, 256, /v1", lambda: lockstep(256, "/v1/completions")),
        ("lockstep, 1,024, /v1", lambda: lockstep(1024, "/v1/completions")),
    ],
    "free": [("free, 256 streams", lambda: free(256))],
    "paced": [
        ("paced, 64 streams x 50/s", lambda: paced(64, 50)),
        ("paced, 1,000 streams x 20/s", lambda: paced(1000, 20)),
    ],
    "first": [("first token, 64 streams", lambda: first(64))],
    "request": [
        ("a request for one token", lambda: one_token(PATH)),
        ("the same, /v1", lambda: one_token("/v1/completions")),
    ],
    "idle": [("idle, 8,000 streams", lambda: idle(8000))],
    "machine": [("a sleep's overrun", machine)],
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each run (default: 3)")
    parser.add_argument("--only", choices=RUNS, help="do only this kind of run (default: all)")
    parser.add_argument("--out", type=Path, help="save the figures as JSON")
    parser.add_argument("--plot", type=Path, help="save a plot as .html, .png or .svg")
    arguments = parser.parse_args()
    if arguments.plot:
        check(arguments.plot)
    os.sched_setaffinity(0, {OTHER_CORE})
    raise_file_limit()
    results: dict[str, Numbers] = {}
    for kind, runs in RUNS.items():
        if arguments.only in (None, kind):
            for name, run in runs:
                results[name] = medians([run() for _ in range(arguments.repeats)])
                shown = "  ".join(f"{key} {value:,g}" for key, value in results[name].items())
                print(f"{name:28} {shown}", flush=True)
    report = {
        **circumstances("benchmarks.overhead", ("granian", "uvloop")),
        "repeats": arguments.repeats,
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.plot:
        panels: dict[str, dict[str, dict[str, float]]] = {}
        for name, figures in results.items():
            for figure, value in figures.items():
                panels.setdefault(figure, {"Penstock": {}})["Penstock"][name] = value
        caption = f"{report['date']}, {report['machine']}; medians of {arguments.repeats}"
        bars(panels, arguments.plot, "What Penstock costs between an engine and a socket", caption)


if __name__ == "__main__":
    main()
