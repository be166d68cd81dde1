"""The noise of the machine: how long the same work takes, again and again, during a run.

A figure is worth only as much as the machine is quiet. So a benchmark takes a sample before each of
its turns: on each core that it uses, the time of a fixed piece of Python, and of a fixed number of
system calls. On a quiet machine all samples are the same. The spread (slowest ÷ fastest) says how
far two figures of the run may differ for no reason.

In: cores. Out: figures. Not known here: what the benchmark measures.
"""

import os
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Numbers

PYTHON_ROUNDS = 300_000
NUM_CALLS = 4_000
PAYLOAD = b"x" * 200
STEAL = 8  # the place of this figure in a line of /proc/stat


def python_ms() -> float:
    """Return the milliseconds that a fixed piece of Python takes."""
    began = time.perf_counter()
    total = 0
    for number in range(PYTHON_ROUNDS):
        total += number % 7
    return 1e3 * (time.perf_counter() - began)


def kernel_ms() -> float:
    """Return the milliseconds that a fixed number of writes and reads of a socket take."""
    left, right = socket.socketpair()
    with left, right:
        began = time.perf_counter()
        for _ in range(NUM_CALLS):
            left.send(PAYLOAD)
            right.recv(len(PAYLOAD))
        return 1e3 * (time.perf_counter() - began)


def stolen_s() -> float:
    """Return the seconds of CPU time that this machine's host has given to others."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    return int(stat.read_text(encoding="ascii").split()[STEAL]) / os.sysconf("SC_CLK_TCK")


class Noise:
    """The samples of a run. `cores`: the cores on which to sample, with their names."""

    def __init__(self, cores: dict[str, int]) -> None:
        self._cores = cores
        self._samples: list[Numbers] = []
        self._loads: list[float] = []
        self._began = time.monotonic()
        self._stolen = stolen_s()

    def sample(self) -> Numbers:
        """Take a sample and return it. Moves this process to each core and back."""
        home = os.sched_getaffinity(0)
        sample: Numbers = {}
        for name, core in self._cores.items():
            os.sched_setaffinity(0, {core})
            sample[f"python_ms, {name}"] = round(python_ms(), 3)
            sample[f"kernel_ms, {name}"] = round(kernel_ms(), 3)
        os.sched_setaffinity(0, home)
        self._samples.append(sample)
        self._loads.append(os.getloadavg()[0])
        return sample

    def report(self) -> dict[str, Any]:
        """Return the spread of each kind of sample, the load, and the share of stolen time."""
        names = self._samples[0] if self._samples else {}
        seconds = time.monotonic() - self._began
        return {
            "samples": len(self._samples),
            "work": {name: spread([each[name] for each in self._samples]) for name in names},
            "load_average": spread(self._loads),
            "stolen_percent": round(
                100 * (stolen_s() - self._stolen) / seconds / (os.cpu_count() or 1), 2
            ),
        }


def spread(values: Sequence[float]) -> Numbers:
    """Return the least, the median and the greatest value, and the greatest ÷ the least."""
    if not values:
        return {}
    low, high = min(values), max(values)
    return {
        "min": round(low, 3),
        "median": round(statistics.median(values), 3),
        "max": round(high, 3),
        "spread": round(high / low, 2) if low else 0.0,
    }


def table(report: dict[str, Any]) -> str:
    """Format a report as Markdown."""
    rows = {**report["work"], "load average (1 minute)": report["load_average"]}
    lines = [
        f"| the machine's noise, {report['samples']} samples | min | median | max | max ÷ min |",
        "|---|---|---|---|---|",
    ]
    for name, each in rows.items():
        values = " | ".join(f"{value:g}" for value in each.values())
        lines.append(f"| {name} | {values} |")
    lines.append(f"| CPU time stolen by the host, percent | | {report['stolen_percent']:g} | | |")
    return "\n".join(lines)
