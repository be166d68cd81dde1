"""Reads streams whose tokens come at a pace, and says what the way to them costs.

In: an address, and the processes on the token's way. Out: their CPU time and the clients' times.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple

import psutil

from tests.faults.client_request import Send, send_request
from tests.faults.history import History, numbered
from tests.faults.proxy import Address
from tests.faults.reading import Reader, fresh_word

LENGTH = 1_000_000
"""The mock engine's argument `length`; it also needs `numbered=true`."""


class Round(NamedTuple):
    """One measurement: µs of CPU per token of each part, and milliseconds of the clients."""

    cpu_us: dict[str, float]
    first_ms: float
    gap_p50_ms: float
    gap_p99_ms: float


async def measure(
    address: Address,
    processes: Mapping[str, Sequence[psutil.Process]],
    num_streams: int,
    num_tokens: int,
    send: Send = send_request,
) -> Round:
    """Read streams at once, and return what they cost. `processes` are those of each part."""
    history = History()
    readers = [Reader(address, history, send=send) for _ in range(num_streams)]
    before = {name: _cpu_s(each) for name, each in processes.items()}

    async def read(reader: Reader) -> tuple[float, list[float]]:
        reader.arrivals = []
        start = time.monotonic()
        truth = numbered(fresh_word(), length=LENGTH, max_tokens=num_tokens)
        await reader.open(truth, resumable=False, max_tokens=num_tokens)
        await reader.read_through()
        return reader.arrivals[0] - start, [b - a for a, b in itertools.pairwise(reader.arrivals)]

    found = await asyncio.gather(*(read(reader) for reader in readers))
    total = num_streams * num_tokens
    cpu = {name: (_cpu_s(each) - before[name]) / total * 1e6 for name, each in processes.items()}
    gaps = quantiles([gap * 1e3 for _, each in found for gap in each], n=100)
    return Round(cpu, median(first for first, _ in found) * 1e3, gaps[49], gaps[98])


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    used = [each.cpu_times() for each in processes]
    return float(sum(each.user + each.system for each in used))
