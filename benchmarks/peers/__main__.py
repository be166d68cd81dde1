"""Penstock beside the usual FastAPI way, vLLM's own server and a bare socket, on the same tokens.

    python -m benchmarks.peers [--streams 64,256,1024] [--repeats 3] [--json FILE] [--plot FILE]

Lockstep: every stream gets exactly one token per step, and the next step begins when the client
has received all of them: one event and one write per token, nothing can be merged. All have engines
that cost nothing. Each server runs alone on core 0, the client (and Penstock's engine, which is a
process of its own) on core 1. They take turns, so that all see the same machine.

CPU is the operating system's count for the server's process; that of its children is told beside
it. Memory is what the process grows by for each open stream that is silent. Medians of the repeats,
with the ratios first. vLLM's server (its app and serving classes around a costless engine) needs
the environment of `make test-vllm`; where there is none it is left out, and that is said.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import psutil

from benchmarks.overhead.__main__ import LOCKSTEP_TOKENS, OTHER_CORE, kib_per_stream
from benchmarks.overhead.client import Streams, request
from benchmarks.peers.servers import Peer, Running, find_vllm, peers, vllm_model
from benchmarks.plot import bars, check
from benchmarks.plot import shown as shown_value

IDLE_STREAMS = 2000
FIGURES = {
    "tokens_per_second": "tokens/s",
    "cpu_us_per_token": "CPU µs/token",
    "children_cpu_us_per_token": "CPU µs/token of its children",
    "kib_per_stream": "KiB/stream",
}
Figures = dict[str, float]


def lockstep(peer: Peer, server: Running, num_streams: int) -> Figures:
    """Tokens per second and CPU per token, nothing merged."""
    data = request(peer.path, {"max_tokens": LOCKSTEP_TOKENS, **peer.fields})
    streams = Streams(server.port, num_streams, data, peer.event_end)
    num_steps = LOCKSTEP_TOKENS - 1  # the last one brings the terminal event too
    ours, others = server.cpu_s()
    seconds = streams.lockstep(server.step, num_steps)
    ours_now, others_now = server.cpu_s()
    streams.close()
    tokens = num_streams * num_steps
    return {
        "tokens_per_second": tokens / seconds,
        "cpu_us_per_token": 1e6 * (ours_now - ours) / tokens,
        "children_cpu_us_per_token": 1e6 * (others_now - others) / tokens,
    }


def idle(peer: Peer, server: Running) -> Figures:
    """Memory of the server's process for each open stream."""
    data = request(peer.path, {"max_tokens": 1024, **peer.fields})
    kib = kib_per_stream(server.port, server.rss, data, IDLE_STREAMS, peer.event_end)
    return {"kib_per_stream": kib}


def measure(found: list[Peer], counts: list[int], repeats: int) -> tuple[Any, dict[str, str]]:
    """By the load's name and the peer's: medians. And the versions of all that had a part."""
    rows: dict[str, dict[str, list[Figures]]] = {}
    versions: dict[str, str] = {}
    runs = [(f"{count:,} streams", count) for count in counts] + [("silent streams", 0)]
    for _ in range(repeats):
        for name, count in runs:
            for peer in found:
                with peer.start() as server:  # a new one each time: memory is not given back
                    shown = lockstep(peer, server, count) if count else idle(peer, server)
                for package, each in server.versions.items():
                    # vLLM's environment has versions of its own.
                    is_ours = versions.setdefault(package, each) == each
                    if not is_ours:
                        versions[f"{package} ({peer.name})"] = each
                rows.setdefault(name, {}).setdefault(peer.name, []).append(shown)
                values = "  ".join(f"{FIGURES[k]} {shown_value(v)}" for k, v in shown.items())
                print(f"{name:14}  {peer.name:34}{values}", file=sys.stderr, flush=True)
    medians = {
        name: {
            peer: {key: round(statistics.median(r[key] for r in each), 3) for key in each[0]}
            for peer, each in by_peer.items()
        }
        for name, by_peer in rows.items()
    }
    return medians, versions


def table(medians: dict[str, dict[str, Figures]]) -> str:
    """As Markdown: how many times Penstock's figure, then the figure."""
    lines = ["| | | ÷ Penstock | |", "|---|---|---|---|"]
    for name, by_peer in medians.items():
        first = next(iter(by_peer.values()))
        for key, label in FIGURES.items():
            title = f"{name}, {label}"
            for peer, figures in by_peer.items():
                if key in figures:
                    ratio = f"{figures[key] / first[key]:.2f}" if first[key] else ""
                    lines.append(f"| {title} | {peer} | {ratio} | {shown_value(figures[key])} |")
                    title = ""
    return "\n".join(lines)


def plot(medians: dict[str, dict[str, Figures]], path: Path, caption: str) -> None:
    """A panel for each figure."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for key, label in FIGURES.items():
        for name, by_peer in medians.items():
            for peer, figures in by_peer.items():
                if key in figures and "children" not in key:
                    panels.setdefault(label, {}).setdefault(peer, {})[name] = figures[key]
    bars(panels, path, "One token, one write: Penstock and others", caption)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--streams", default="64,256,1024", help="(default: 64,256,1024)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", default=find_vllm(), help="the Python of vLLM's environment")
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM's server out")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--plot", type=Path, help="a picture: .html, .png or .svg")
    options = parser.parse_args()
    if options.plot:
        check(options.plot)
    counts = [int(each) for each in options.streams.split(",")]
    vllm = None if options.no_vllm else options.vllm
    if vllm is None:
        print("without vLLM's server: `make test-vllm` makes its environment", file=sys.stderr)
    busy = psutil.cpu_percent(3.0)
    os.sched_setaffinity(0, {OTHER_CORE})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(vllm_model(vllm)) if vllm else None
        medians, versions = measure(peers(vllm, model), counts, options.repeats)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    print(f"{machine}; it was {busy:.0f}% busy before\n\n{table(medians)}")
    report = {
        "date": date,
        "command": shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        "machine": machine,
        "busy_before_percent": busy,
        "versions": {"python": platform.python_version(), **versions},
        "repeats": options.repeats,
        "results": medians,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(medians, options.plot, f"{date}, {machine}; medians of {options.repeats}")


if __name__ == "__main__":
    main()
