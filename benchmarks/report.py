"""Shared code of the benchmarks: statistics, circumstances of a run, and a table with JSON.

In: measured values. Out: figures, printed. Not known here: servers and loads.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import uvloop

import penstock
from penstock.server import raise_file_limit

Figures = dict[str, Any]
Numbers = dict[str, float]
Measure = Callable[..., Coroutine[None, None, Figures]]
CPUCLOCK_SCHED = 2  # part of a clock's number in Linux, see clock_getcpuclockid(3)
PACKAGES = ("granian", "uvloop", "starlette", "msgspec", "xllamacpp")


class FigureCommands:
    """A command line with one subcommand for each figure.

    `module`: the module to run with `python -m`. `title`: comes before the subcommand's name in
    the output.
    """

    def __init__(self, module: str, description: str, title: str = "") -> None:
        self._module = module
        self._title = title
        self._parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
        self._commands = self._parser.add_subparsers(dest="name", required=True)

    def add(self, name: str, measure: Measure, text: str) -> argparse.ArgumentParser:
        """Add a subcommand that calls `measure` with its arguments, and return its parser."""
        parser = self._commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.set_defaults(measure=measure)
        return parser

    def run(self) -> Figures:
        """Measure the figure that the command line names, print it and return it."""
        arguments = vars(self._parser.parse_args())
        name, measure = arguments.pop("name"), arguments.pop("measure")
        prepare_client()
        figures: Figures = uvloop.run(measure(**arguments))
        show(self._module, f"{self._title}{name}", figures)
        return figures


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that a share `q` of the values do not exceed, 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def spread_ms(seconds: Sequence[float]) -> Figures:
    """Return the median, 99th percentile and maximum in milliseconds, and the number of values."""
    return {
        "p50_ms": round(1000 * quantile(seconds, 0.5), 2),
        "p99_ms": round(1000 * quantile(seconds, 0.99), 2),
        "max_ms": round(1000 * max(seconds, default=0.0), 2),
        "of": len(seconds),
    }


def medians(repeats: Sequence[Numbers], digits: int = 3) -> Numbers:
    """Return the median of each figure over the repeats of a run."""
    return {
        name: round(statistics.median(each[name] for each in repeats), digits)
        for name in repeats[0]
    }


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds that a process has used, in all its threads."""
    if platform.system() == "Linux":  # its clock counts nanoseconds, psutil's figures 10 ms
        return time.clock_gettime((~process.pid << 3) | CPUCLOCK_SCHED)
    times = process.cpu_times()
    return float(times.user + times.system)


def cache_folder() -> Path:
    """Return the folder for what all clones of this repository share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


def prepare_client() -> None:
    """Allow thousands of connections, and stop the pauses of the client's garbage collector."""
    raise_file_limit()
    gc.collect()
    gc.disable()


def show(module: str, title: str, figures: Figures) -> None:
    """Print figures as a table, and with their circumstances as a line of JSON."""
    print(title)
    for name, value in _rows(figures):
        print(f"  {name:<52} {value}")
    print(json.dumps({"figure": title, **circumstances(module), **figures}))


def circumstances(module: str, packages: Sequence[str] = PACKAGES) -> Figures:
    """Return the command, date, machine, load and versions of a run of `python -m {module}`."""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "kernel": platform.release(),
            **versions(packages),
        },
    }


def machine() -> str:
    """Return the processor, the number of cores and the memory of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Penstock and of those packages that are installed."""
    found = {"penstock": penstock.__version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _rows(figures: Figures, prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in figures.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict) and value and all(_is_plain(each) for each in value.values()):
            rows.append((label, ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items())))
        elif isinstance(value, dict):
            rows += _rows(value, f"{label}: ")
        else:
            rows.append((label, str(value)))
    return rows


def _is_plain(value: object) -> bool:
    return not isinstance(value, dict | list)
