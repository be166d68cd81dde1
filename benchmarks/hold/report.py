"""What every figure needs: numbers, the machine, a table and JSON."""

import datetime
import gc
import json
import os
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import penstock

Figures = dict[str, Any]
PACKAGES = ("granian", "uvloop", "starlette", "msgspec", "xllamacpp")


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that is not smaller than a share `q` of them; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def spread_ms(seconds: Sequence[float]) -> Figures:
    """Median, 99th percentile and largest, in milliseconds."""
    return {
        "p50_ms": round(1000 * quantile(seconds, 0.5), 2),
        "p99_ms": round(1000 * quantile(seconds, 0.99), 2),
        "max_ms": round(1000 * max(seconds, default=0.0), 2),
        "of": len(seconds),
    }


def prepare_client() -> None:
    """Thousands of connections, and no pauses of the client's own that look like the server's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    gc.collect()
    gc.disable()


def show(title: str, figures: Figures) -> None:
    """A table for people, and the same and its circumstances as JSON."""
    print(title)
    for name, value in _rows(figures):
        print(f"  {name:<52} {value}")
    print(json.dumps({"figure": title, **circumstances(), **figures}))


def circumstances() -> Figures:
    """Where, when, with what and how a figure was made."""
    module = Path(sys.argv[0]).parent.name
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "load": [round(each, 2) for each in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "penstock": penstock.__version__,
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
    }


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


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
