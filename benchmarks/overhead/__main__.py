"""What Penstock costs between an engine and a socket: CPU per token, added latency, memory.

    python -m benchmarks.overhead [--repeats 3] [--only lockstep] [--out results.json] [--plot FILE]

The server runs alone on core 0. An engine that costs nothing (see `engine`) and a client that costs
little share core 1. CPU is the operating system's count for the server's process.

- lockstep: every stream gets exactly one token per step, and the next step begins when the client
  has received all of them: one event, one write per token; nothing can be merged.
- free: the engine gives every stream a token as fast as it can; what comes together is sent
  together.
- paced: every stream gets its tokens at a steady rate; each token is the time at which the engine
  pushed it, so what the client adds to is the latency that Penstock added.
- first: the time from sending a request to its first token, while others are open.
- request: what a request costs that asks for one token: its connection, its answer, its line in the
  log.
- idle: memory of the server's process for each open stream that is silent.
- machine: by how much a sleep of a millisecond overruns on the server's core while nothing else
  runs. No latency can be measured that is less; read the others beside it.

One line for each run, medians of the repeats, and JSON with the machine and versions.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.hold.report import quantile
from benchmarks.overhead.client import EVENT_END, Streams, first_token, request
from benchmarks.plot import bars, check
from penstock import __version__

SERVER_CORE, OTHER_CORE = 0, 1
LOCKSTEP_TOKENS = 256
FREE_TOKENS = 1024
WARM_STREAMS = 200
NUM_REQUESTS = 500
NUM_SLEEPS = 2000
PACED_SECONDS = 8
PATH = "/generate"
Figures = dict[str, float]


@dataclass
class Server:
    """A server on its own core. `step` is where its engine listens for the next step."""

    port: int
    process: psutil.Process
    step: str

    def cpu_s(self) -> float:
        """CPU seconds so far, of the server's process alone: the engine's is another."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> int:
        """Resident memory, in bytes."""
        return int(self.process.memory_info().rss)


@contextlib.contextmanager
def penstock(engine: str, **engine_args: object) -> Iterator[Server]:
    """Penstock with one of our engines."""
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
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"page and API\s+http://\S+:(\d+)", line):
                    break
            else:
                raise SystemExit("the server did not start")
            yield Server(int(found[1]), psutil.Process(process.pid), step)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.terminate()
            process.wait()


def lockstep(num_streams: int, path: str = PATH) -> Figures:
    """Tokens per second and CPU per token, nothing merged."""
    with penstock("Stepped") as server:
        fields: dict[str, object] = {"max_tokens": LOCKSTEP_TOKENS}
        streams = Streams(server.port, num_streams, request(path, fields))
        num_steps = LOCKSTEP_TOKENS - 1  # the last one brings the terminal event too
        run = partial(streams.lockstep, server.step, num_steps)
        figures = throughput(server, run, num_streams * num_steps)
        streams.close()
    return figures


def free(num_streams: int) -> Figures:
    """Tokens per second and CPU per token, as many as there can be in one write."""
    with penstock("Free") as server:
        data = request(PATH, {"max_tokens": FREE_TOKENS}, connection="close")
        streams = Streams(server.port, num_streams, data)
        run = partial(streams.free, server.step)
        figures = throughput(server, run, num_streams * FREE_TOKENS)
        streams.close()
    return figures


def throughput(
    server: Server, run: Callable[[], float], number: int, unit: str = "token"
) -> Figures:
    """Of a `run` that brings so many tokens (or what `unit` says) and tells how many seconds that
    took."""
    cpu = server.cpu_s()
    seconds = run()
    cpu = server.cpu_s() - cpu
    return {f"{unit}s_per_second": number / seconds, f"cpu_us_per_{unit}": 1e6 * cpu / number}


def paced(num_streams: int, rate: int) -> Figures:
    """How much later than the engine pushed them tokens came, in milliseconds."""
    with penstock("Paced", rate=rate) as server:
        fields: dict[str, object] = {"max_tokens": min(1024, rate * PACED_SECONDS)}
        streams = Streams(server.port, num_streams, request(PATH, fields))
        latencies: list[int] = []
        stamp = re.compile(rb'"token":" (\d+)"')

        began = time.monotonic_ns()

        def take(data: bytes) -> None:
            now = time.monotonic_ns()
            pushed = map(int, stamp.findall(data))
            # What came before nobody read: the streams were being opened.
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


def first(num_streams: int) -> Figures:
    """The time to a first token that costs the engine nothing, beside open streams."""
    with penstock("Paced", rate=50, eager="true") as server:
        others = Streams(server.port, num_streams - 1, request(PATH, {"max_tokens": 1024}))
        data = request(PATH, {"max_tokens": 1})
        times = sorted(first_token(server.port, data) for _ in range(NUM_REQUESTS))
        others.close()
    return {"p50_ms": 1e3 * quantile(times, 0.5), "p99_ms": 1e3 * quantile(times, 0.99)}


def one_token(path: str) -> Figures:
    """Requests for one token, one after the other."""
    with penstock("Paced", rate=50, eager="true") as server:
        data = request(path, {"max_tokens": 1})
        first_token(server.port, data)  # what is made once is made now

        def run() -> float:
            began = time.monotonic()
            for _ in range(NUM_REQUESTS):
                first_token(server.port, data)
            return time.monotonic() - began

        return throughput(server, run, NUM_REQUESTS, "request")


def machine() -> Figures:
    """What the machine itself adds, in milliseconds."""
    os.sched_setaffinity(0, {SERVER_CORE})
    overruns = []
    for _ in range(NUM_SLEEPS):
        began = time.perf_counter()
        time.sleep(0.001)
        overruns.append(1e3 * (time.perf_counter() - began) - 1)
    os.sched_setaffinity(0, {OTHER_CORE})
    overruns.sort()
    return {"p50_ms": quantile(overruns, 0.5), "p99_ms": quantile(overruns, 0.99)}


def idle(num_streams: int) -> Figures:
    """Memory of the server's process for each open stream."""
    with penstock("Stepped") as server:
        data = request(PATH, {"max_tokens": 1024})
        return {"kib_per_stream": kib_per_stream(server.port, server.rss, data, num_streams)}


def kib_per_stream(
    port: int, rss: Callable[[], int], data: bytes, num_streams: int, event_end: bytes = EVENT_END
) -> float:
    """How much `rss` (bytes) grows for each silent stream, beside some that are open already."""
    warm = Streams(port, WARM_STREAMS, data, event_end)
    before = rss()
    streams = Streams(port, num_streams, data, event_end)
    after = rss()
    streams.close()
    warm.close()
    return (after - before) / num_streams / 1024


RUNS: dict[str, list[tuple[str, Callable[[], Figures]]]] = {
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
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=RUNS)
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("--plot", type=Path, help="a picture: .html, .png or .svg")
    arguments = parser.parse_args()
    if arguments.plot:
        check(arguments.plot)
    os.sched_setaffinity(0, {OTHER_CORE})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results: dict[str, Figures] = {}
    for kind, runs in RUNS.items():
        if arguments.only in (None, kind):
            for name, run in runs:
                repeats = [run() for _ in range(arguments.repeats)]
                results[name] = {
                    figure: round(statistics.median(each[figure] for each in repeats), 3)
                    for figure in repeats[0]
                }
                shown = "  ".join(f"{key} {value:,g}" for key, value in results[name].items())
                print(f"{name:28} {shown}", flush=True)
    report = {
        "command": " ".join(["python -m benchmarks.overhead", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {name: version(name) for name in ("granian", "uvloop")}
        | {"penstock": __version__, "python": platform.python_version()},
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
