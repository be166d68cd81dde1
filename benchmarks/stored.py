"""Measures what a store of logs costs: servers with and without a store carry the same load.

    python -m benchmarks.stored
    python -m benchmarks.stored --log memory --log ./folder --log redis://127.0.0.1:6379/0

For each kind of log, in turns: a server with an engine that costs nothing, and clients that read
resumable streams, all of which get a token in each step (256 streams, 100 steps a second). Out,
as the median of the turns: the CPU time of the server's process for each token, in microseconds,
and what the store adds: the difference to memory. The gap between two tokens at a client, and the
time until the store confirms a write, in milliseconds.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import cast

import psutil
import uvloop

from benchmarks.report import prepare_client, quantile
from tests.support.raw import post
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve

MODULE = "benchmarks.stored"
WARM_UP_S = 1.0
MEASURE_S = 5.0


@dataclass
class Figures:
    """One turn of one kind of log: CPU in microseconds per token, times in milliseconds."""

    cpu: float
    tokens_per_s: float
    gap_p50: float
    gap_p99: float
    store_p50: float
    store_p99: float


class Client(asyncio.Protocol):
    """Sends one request and notes when data comes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.times: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self.times.append(time.monotonic())


async def load(server: RunningServer, num_streams: int) -> Figures:
    """Put the load on a server, and measure in the middle of it."""
    body = json.dumps({"prompt": "x", "max_tokens": 100_000, "resumable": True}).encode()
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(num_streams):
        made = await loop.create_connection(lambda: Client(post(body)), *server.address)
        clients.append(made)
    await asyncio.sleep(WARM_UP_S)
    process = psutil.Process(server.pid)
    before, cpu_before = await asyncio.to_thread(Scrape, server), _cpu(process)
    began = time.monotonic()
    await asyncio.sleep(MEASURE_S)
    after, cpu_after = await asyncio.to_thread(Scrape, server), _cpu(process)
    ended = time.monotonic()
    for transport, _ in clients:
        transport.abort()
    name = "penstock_completion_tokens_total"
    num_tokens = after(name) - before(name)
    gaps = [
        1000 * (later - earlier)
        for _, client in clients
        for earlier, later in zip(client.times, client.times[1:], strict=False)
        if began <= earlier <= ended
    ]
    return Figures(
        1e6 * (cpu_after - cpu_before) / num_tokens,
        num_tokens / (ended - began),
        quantile(gaps, 0.5),
        quantile(gaps, 0.99),
        *(_store_ms(before, after, share) for share in (0.5, 0.99)),
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _store_ms(before: Scrape, after: Scrape, share: float) -> float:
    """Return an upper bound of a quantile of the time until the store confirms, or 0."""
    name = "penstock_store_seconds_bucket"
    counts = {
        float(bound): count - before.by(name, "le").get(bound, 0.0)
        for bound, count in after.by(name, "le").items()
    }
    total = max(counts.values(), default=0.0)
    reached = (bound for bound, count in sorted(counts.items()) if count >= share * total)
    return 1000 * next(reached, 0.0) if total else 0.0


def turn(log: str, num_streams: int, interval: float) -> Figures:
    """Start a server with this log, load it, and stop it."""
    with serve(
        engine="benchmarks.overhead.engine:Ticking",
        engine_arg=[f"rate={1 / interval}", "groups=1"],
        log=log,
        linger=0,
    ) as server:
        return uvloop.run(load(server, num_streams))


def main() -> None:
    """Run the command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--log", action="append", help="may be repeated; memory and a new folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--interval", type=float, default=0.01, help="seconds between two tokens")
    given = parser.parse_args()
    prepare_client()
    with tempfile.TemporaryDirectory() as folder:
        logs = given.log or ["memory", folder]
        turns: dict[str, list[Figures]] = {log: [] for log in logs}
        for _ in range(given.repeats):
            for log in logs:
                turns[log].append(turn(log, given.streams, given.interval))
    first = statistics.median(each.cpu for each in turns[logs[0]])
    print(f"{'log':34} tokens/s  us/token   added  gap p50   p99   store p50   p99 (ms)")
    for log, figures in turns.items():
        median = {
            name: statistics.median(getattr(each, name) for each in figures)
            for name in Figures.__dataclass_fields__
        }
        name = "folder" if log == logs[-1] and not given.log else log
        print(
            f"{name:34} {median['tokens_per_s']:8.0f} {median['cpu']:9.2f}"
            f" {median['cpu'] - first:7.2f} {median['gap_p50']:8.2f} {median['gap_p99']:5.1f}"
            f" {median['store_p50']:11.2f} {median['store_p99']:5.2f}"
        )


if __name__ == "__main__":
    main()
