"""Compares Penstock with vLLM's servers, llama.cpp's, the usual FastAPI app and a bare socket.

    python -m benchmarks.peers [--streams 1,64,256,1024] [--repeats 3] [--peers NAMES]
                               [--json FILE] [--plot FILE]

Most of the run has zero-cost engines and goes in lockstep: every stream gets exactly one token per
step, and the next step begins when the client has received all of them. Each token is one event and
one write; nothing can be merged. One client and one rule drive every server. Each server runs alone
on core 0. The client, and the engine if it is a process of its own, run on core 1. The servers take
turns, so that all see the same machine.

All requests of a round arrive at once, and the engine gives the first token of each at once: that
is the time to the first token. Then the steps begin. Before each turn the benchmark times the same
fixed work on both cores: the report has the spread of these samples, which is the machine's noise.

CPU is the CPU time that the operating system counts for the server's process; its engine's is
listed separately. Memory is the growth of the process for each open stream that waits for a token.
The last part compares the embedded engine with llama.cpp's own server, on both cores and at full
speed: see `benchmarks.embedded`.

The output: the medians of the repeats, the noise, and the ratios to the other servers with their
goals. vLLM's server in Rust needs its program (see `benchmarks.peers.vllm_rs`), its server in
Python needs the environment of `make test-vllm`. Without them, the benchmark says so and leaves
them out.
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import embedded, noise
from benchmarks.overhead.server import OTHER_CORE, SERVER_CORE, PinnedServer
from benchmarks.peers import ratios
from benchmarks.peers.measuring import lockstep, name, one_token, silent
from benchmarks.peers.ratios import ONE_TOKEN, SILENT, Results
from benchmarks.peers.servers import Peer, find_vllm, hub_model, peers
from benchmarks.peers.turns import Turns
from benchmarks.peers.vllm_rs import HOW, find_vllm_rs
from benchmarks.plot import bars, check, format_value
from benchmarks.report import Numbers, circumstances
from penstock.server import raise_file_limit

CORES = {"the server's core": SERVER_CORE, "the client's core": OTHER_CORE}
PLOTTED = (
    "tokens_per_second",
    "cpu_us_per_token",
    "gap_p99_ms",
    "first_p50_ms",
    "cpu_us_per_request",
    "kib_per_stream",
    "ttft_p50_ms",
)
MAX_TOKENS = 256  # of an answer of the embedded engine

Load = Callable[[Peer, PinnedServer], Numbers]


def measure(turns: Turns, found: list[Peer], loads: dict[str, Load], repeats: int) -> None:
    """Measure all servers under all loads, in turns."""
    for _ in range(repeats):
        for load, run in loads.items():
            for peer in found:
                turns.begin()
                with peer.start() as server:  # a new server each time: memory is not given back
                    try:
                        turns.add(load, peer.name, run(peer, server))
                    except (ConnectionError, TimeoutError) as error:
                        turns.add_failure(load, peer.name, error)
                    turns.add_versions(server, peer.name)


def table(results: Results) -> str:
    """Format the results as Markdown, with a table for each load."""
    parts = []
    for load, by_server in results.items():
        figures = list(next(iter(by_server.values())))
        lines = [
            f"| {load} | " + " | ".join(map(name, figures)) + " |",
            "|---" * len(figures) + "|---|",
        ]
        for server, values in by_server.items():
            lines.append(
                f"| {server} | " + " | ".join(format_value(values[f]) for f in figures) + " |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plot(results: Results, path: Path, caption: str) -> None:
    """Plot the results: a panel for each figure, and others for the embedded engine."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for prefix in ("", ratios.EMBEDDED):
        for key in PLOTTED:
            for load, by_server in results.items():
                if load.startswith(ratios.EMBEDDED) != bool(prefix):
                    continue
                for server, figures in by_server.items():
                    if key in figures:
                        panel = panels.setdefault(prefix + name(key), {})
                        panel.setdefault(server, {})[load.removeprefix(prefix)] = figures[key]
    bars(panels, path, "One token, one write: Penstock and other servers", caption)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--streams", default="1,64,256,1024", help="numbers of streams at once")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each server and load")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a turn's steps")
    parser.add_argument(
        "--peers",
        default="completions,native,floor,vllm-rs,fastapi,vllm",
        help="the servers to compare",
    )
    parser.add_argument("--vllm-rs", type=Path, default=find_vllm_rs(), help="the program vllm-rs")
    parser.add_argument("--vllm", default=find_vllm(), help="the Python of vLLM's environment")
    parser.add_argument(
        "--embedded",
        default="1,16,64",
        help="numbers of streams for the embedded engine and llama.cpp's server; empty: none",
    )
    parser.add_argument("--no-silent", action="store_true", help="do not measure memory")
    parser.add_argument("--json", type=Path, help="save the figures as JSON")
    parser.add_argument("--plot", type=Path, help="save a plot as .html, .png or .svg")
    options = parser.parse_args()
    if options.plot:
        check(options.plot)
    if options.vllm_rs is not None and not os.access(options.vllm_rs, os.X_OK):
        parser.error(f"{options.vllm_rs} is not a program. {HOW}")
    chosen = options.peers.split(",")
    if "vllm-rs" in chosen and options.vllm_rs is None:
        print(f"Without vLLM's server in Rust. {HOW}", file=sys.stderr)
    if "vllm" in chosen and options.vllm is None:
        print(
            "Without vLLM's server in Python: `make test-vllm` makes its environment.",
            file=sys.stderr,
        )
    loads: dict[str, Load] = {
        ratios.streams(count): partial(lockstep, num_streams=count, seconds=options.seconds)
        for count in numbers(options.streams)
    }
    loads[ONE_TOKEN] = one_token
    if not options.no_silent:
        loads[SILENT] = silent
    raise_file_limit()
    turns = Turns(noise.Noise(CORES))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {OTHER_CORE})
    gc.disable()
    with hub_model() as model:
        all_peers = peers(model, options.vllm_rs, options.vllm)
        found = [peer for key, peer in all_peers.items() if key in chosen]
        measure(turns, found, loads, options.repeats)
    os.sched_setaffinity(0, cores)
    counts = numbers(options.embedded)
    if counts:
        run = embedded.compare(counts, options.repeats, 6.0, MAX_TOKENS, turns.begin)
        for count, server, figures in run:
            turns.add(ratios.embedded_streams(count), server, figures)
    results, judged = turns.medians(), ratios.judge(turns.repeats())
    report = circumstances("benchmarks.peers")
    report["versions"] |= turns.versions
    report |= {
        "repeats": options.repeats,
        "noise": turns.noise.report(),
        "failures": turns.failures,
        "ratios": judged,
        "results": results,
        "turns": turns.each,
    }
    print(f"{report['machine']}; medians of {options.repeats}\n\n{table(results)}\n")
    print(f"{noise.table(report['noise'])}\n\n{ratios.table(judged)}")
    print("\n".join(["", *turns.failures]))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        caption = f"{report['date']}, {report['machine']}; medians of {options.repeats}"
        plot(results, options.plot, caption)


def numbers(text: str) -> list[int]:
    """Parse numbers with commas between them."""
    return [int(each) for each in text.split(",") if each]


if __name__ == "__main__":
    main()
