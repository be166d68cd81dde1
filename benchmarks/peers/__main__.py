"""Compares Penstock with the usual FastAPI app, vLLM's own server and a bare socket.

    python -m benchmarks.peers [--streams 64,256,1024] [--repeats 3] [--json FILE] [--plot FILE]

All servers have zero-cost engines and run in lockstep: every stream gets exactly one token per
step, and the next step begins when the client has received all of them. Each token is one event and
one write; nothing can be merged. Each server runs alone on core 0. The client, and Penstock's
engine (a separate process), run on core 1. The servers take turns, so that all see the same
machine.

CPU is the CPU time that the operating system counts for the server's process; its children's CPU
time is listed separately. Memory is the growth of the process for each open stream without tokens.
The output is the medians of the repeats, with the ratios first. vLLM's server (its app and serving
classes around a zero-cost engine) needs the environment of `make test-vllm`. Without it, the
benchmark says so and leaves vLLM's server out.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

import psutil

from benchmarks.overhead.client import LOCKSTEP_TOKENS, ClientStreams, kib_per_stream, request
from benchmarks.overhead.server import OTHER_CORE, PinnedServer
from benchmarks.peers.servers import Peer, find_vllm, peers, vllm_model
from benchmarks.plot import bars, check, format_value
from benchmarks.report import Numbers, circumstances, medians
from penstock.server import raise_file_limit

IDLE_STREAMS = 2000
FIGURES = {
    "tokens_per_second": "tokens/s",
    "cpu_us_per_token": "CPU µs/token",
    "children_cpu_us_per_token": "CPU µs/token of its children",
    "kib_per_stream": "KiB/stream",
}


def lockstep(peer: Peer, server: PinnedServer, num_streams: int) -> Numbers:
    """Measure tokens per second and CPU per token, with one write for each token."""
    data = request(peer.path, {"max_tokens": LOCKSTEP_TOKENS, **peer.fields})
    streams = ClientStreams(server.port, num_streams, data, peer.event_end)
    num_steps = LOCKSTEP_TOKENS - 1  # the last token comes with the terminal event
    cpu, children_cpu = server.cpu_s(), server.children_cpu_s()
    seconds = streams.lockstep(server.step, num_steps)
    cpu, children_cpu = server.cpu_s() - cpu, server.children_cpu_s() - children_cpu
    streams.close()
    tokens = num_streams * num_steps
    return {
        "tokens_per_second": tokens / seconds,
        "cpu_us_per_token": 1e6 * cpu / tokens,
        "children_cpu_us_per_token": 1e6 * children_cpu / tokens,
    }


def idle(peer: Peer, server: PinnedServer) -> Numbers:
    """Measure the memory of the server's process for each open stream."""
    data = request(peer.path, {"max_tokens": 1024, **peer.fields})
    kib = kib_per_stream(server.port, server.rss, data, IDLE_STREAMS, peer.event_end)
    return {"kib_per_stream": kib}


def measure(
    found: list[Peer], counts: list[int], repeats: int
) -> tuple[dict[str, dict[str, Numbers]], dict[str, str]]:
    """Return the medians by load and peer, and the versions of the packages involved."""
    rows: dict[str, dict[str, list[Numbers]]] = {}
    versions: dict[str, str] = {}
    runs = [(f"{count:,} streams", count) for count in counts] + [("silent streams", 0)]
    for _ in range(repeats):
        for name, count in runs:
            for peer in found:
                with peer.start() as server:  # a new server each time: memory is not given back
                    shown = lockstep(peer, server, count) if count else idle(peer, server)
                for package, each in server.versions.items():
                    # vLLM's environment can have other versions of the same packages.
                    is_ours = versions.setdefault(package, each) == each
                    if not is_ours:
                        versions[f"{package} ({peer.name})"] = each
                rows.setdefault(name, {}).setdefault(peer.name, []).append(shown)
                values = "  ".join(f"{FIGURES[k]} {format_value(v)}" for k, v in shown.items())
                print(f"{name:14}  {peer.name:34}{values}", file=sys.stderr, flush=True)
    results = {
        name: {peer_name: medians(each) for peer_name, each in by_peer.items()}
        for name, by_peer in rows.items()
    }
    return results, versions


def table(results: dict[str, dict[str, Numbers]]) -> str:
    """Format the results as Markdown: the ratio to Penstock's figure, then the figure."""
    lines = ["| | | ÷ Penstock | |", "|---|---|---|---|"]
    for name, by_peer in results.items():
        first = next(iter(by_peer.values()))
        for key, label in FIGURES.items():
            title = f"{name}, {label}"
            for peer, figures in by_peer.items():
                if key in figures:
                    ratio = f"{figures[key] / first[key]:.2f}" if first[key] else ""
                    lines.append(f"| {title} | {peer} | {ratio} | {format_value(figures[key])} |")
                    title = ""
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Numbers]], path: Path, caption: str) -> None:
    """Plot the results, with a panel for each figure."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for key, label in FIGURES.items():
        for name, by_peer in results.items():
            for peer, figures in by_peer.items():
                if key in figures and "children" not in key:
                    panels.setdefault(label, {}).setdefault(peer, {})[name] = figures[key]
    bars(panels, path, "One token, one write: Penstock and other servers", caption)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--streams", default="64,256,1024", help="numbers of streams at once (default: 64,256,1024)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each run (default: 3)")
    parser.add_argument(
        "--vllm", default=find_vllm(), help="the Python of vLLM's environment (default: the latest)"
    )
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM's server out")
    parser.add_argument("--json", type=Path, help="save the figures as JSON")
    parser.add_argument("--plot", type=Path, help="save a plot as .html, .png or .svg")
    options = parser.parse_args()
    if options.plot:
        check(options.plot)
    counts = [int(each) for each in options.streams.split(",")]
    vllm = None if options.no_vllm else options.vllm
    if vllm is None:
        print("Without vLLM's server: `make test-vllm` makes its environment.", file=sys.stderr)
    busy = psutil.cpu_percent(3.0)
    os.sched_setaffinity(0, {OTHER_CORE})
    raise_file_limit()
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(vllm_model(vllm)) if vllm else None
        results, versions = measure(peers(vllm, model), counts, options.repeats)
    report = circumstances("benchmarks.peers", ())
    print(f"{report['machine']}, {busy:.0f}% busy before the run\n\n{table(results)}")
    report["versions"] |= versions
    report |= {"busy_before_percent": busy, "repeats": options.repeats, "results": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        caption = f"{report['date']}, {report['machine']}; medians of {options.repeats}"
        plot(results, options.plot, caption)


if __name__ == "__main__":
    main()
