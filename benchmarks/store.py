"""Measure what a store of logs costs: `python -m benchmarks.store [--streams 256] [--steps 1000]`.

One process appends a token to each stream in each step, as a server does, 100 steps a second.
Another follows streams of it, one after the other. Printed for each store: the appending process's
CPU time for a token (beside the same loop without a store), the time from `append` to `then`, and
the time until a follower elsewhere has the first entries.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from penstock.store.protocol import LogStore, StoredLog, Wanted
from penstock.store.sqlite.store import SqliteStore

STEP_S = 0.01
PATIENCE_S = 10.0
ENTRY = b"\x94\xa6 token\x01\x92\xcd\x30\x39\xcd\x30\x3a\x00"
STORES = ("sqlite", "sqlite-full")


def make(name: str, place: str) -> LogStore:
    """Return a replica's store."""
    synchronous = "FULL" if name == "sqlite-full" else "NORMAL"
    return SqliteStore(Path(place), patience=PATIENCE_S, synchronous=synchronous)


class Ignored:
    """A watcher that has nothing to watch."""

    def log_lost(self, log: StoredLog) -> None: ...

    def logs_orphaned(self, orphans: Sequence[tuple[str, int]]) -> None: ...

    def store_changed(self) -> None: ...

    def logs_unreachable(self) -> None: ...


def at(sorted_values: Sequence[float], part: float) -> float:
    """Return a percentile."""
    return sorted_values[min(int(len(sorted_values) * part), len(sorted_values) - 1)]


async def steps(num_steps: int, step: "Step") -> float:
    """Do so many steps at their times; return the CPU time that they took, in seconds."""
    began, cpu = time.monotonic(), time.process_time()
    for number in range(num_steps):
        step()
        await asyncio.sleep(max(0.0, began + (number + 1) * STEP_S - time.monotonic()))
    return time.process_time() - cpu


class Step:
    """A step that only makes its entries."""

    def __init__(self, logs: Sequence[StoredLog]) -> None:
        self.logs = logs

    def __call__(self) -> None:
        self.entries()

    def entries(self) -> list[tuple[StoredLog, bytes]]:
        """Return a token for each stream."""
        return [(log, ENTRY) for log in self.logs]


class StoredStep(Step):
    """A step that also stores them."""

    def __init__(self, store: LogStore, logs: Sequence[StoredLog]) -> None:
        super().__init__(logs)
        self.store = store
        self.waits: list[float] = []

    def __call__(self) -> None:
        began = time.perf_counter()
        self.store.append(
            self.entries(), lambda: self.waits.append((time.perf_counter() - began) * 1e3)
        )


async def append(name: str, place: str, num_streams: int, num_steps: int) -> None:
    store = make(name, place)
    await store.start(Ignored())
    logs = [store.open(f"s{number}", b"header" * 100) for number in range(num_streams)]
    num_tokens = num_streams * num_steps
    alone = await steps(num_steps, Step(logs))
    follower = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.store", "--follow", name, place,
        "--streams", str(num_streams), "--steps", str(num_steps),
    )  # fmt: skip
    stored = StoredStep(store, logs)
    cpu = await steps(num_steps, stored)
    waits = sorted(stored.waits)
    print(
        f"{name}: {(cpu - alone) / num_tokens * 1e6:.2f} us/token"
        f" (the loop alone {alone / num_tokens * 1e6:.2f}),"
        f" stored after {at(waits, 0.5):.2f} ms p50, {at(waits, 0.99):.2f} p99, {waits[-1]:.2f} max"
    )
    await follower.wait()
    await store.stop()


async def follow(name: str, place: str, num_streams: int, num_steps: int) -> None:
    store = make(name, place)
    await store.start(Ignored())
    waits = []
    give_up = time.monotonic() + num_steps * STEP_S * 0.7
    while time.monotonic() < give_up:
        began = time.perf_counter()
        first = asyncio.Event()
        stream_id = f"s{random.randrange(num_streams)}"
        (following,) = await store.follow([Wanted(stream_id, lambda _: first.set())])  # noqa: B023
        assert following is not None
        await first.wait()
        waits.append((time.perf_counter() - began) * 1e3)
        following.close()
        await asyncio.sleep(0.05)
    waits.sort()
    print(
        f"{name}: a follower elsewhere has its first entries after {at(waits, 0.5):.1f} ms p50,"
        f" {at(waits, 0.99):.1f} p99, {waits[-1]:.1f} max ({len(waits)} times)"
    )
    await store.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--follow", nargs=2, metavar=("STORE", "PLACE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.follow:
        name, place = args.follow
        asyncio.run(follow(name, place, args.streams, args.steps))
        return
    for name in STORES:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(append(name, f"{folder}/log", args.streams, args.steps))


if __name__ == "__main__":
    main()
