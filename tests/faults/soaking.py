"""What the soaks have in common: how they are called, how they run, and how they end.

In: a soak's clients and faults, as coroutines. Out: a line of progress each second, what was done
how often, the verdict, and the exit status.
"""

import argparse
import asyncio
import collections
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import uvloop

from tests.faults.checker import Verdict
from tests.faults.reading import Reader

SILENCE_S = 4.0
"""A reader leaves a server that sends no byte for so many seconds. Heartbeats come more often."""

Did = collections.Counter[str]
"""How often each thing was done."""


def arguments(doc: str | None, minutes: float) -> argparse.ArgumentParser:
    """Return the parser of the arguments that every soak has; `minutes` is its usual length."""
    assert doc is not None
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    return parser


def soak(seed: int, run: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Run a soak, and exit with status 1 unless every invariant held."""
    print(f"seed {seed}")
    raise SystemExit(0 if uvloop.run(run()) else 1)


async def run_all(
    jobs: Iterable[Coroutine[Any, Any, None]], minutes: float, figures: Callable[[], str]
) -> None:
    """Run clients and faults to their ends, and show the time and the figures each second."""
    began = time.monotonic()
    everything = asyncio.gather(*jobs)
    while not everything.done():
        await asyncio.wait((everything,), timeout=1.0)
        seconds = time.monotonic() - began
        line = f"\r{seconds:5.0f} of {minutes * 60:.0f} s: {figures()} "
        print(line, end="", file=sys.stderr, flush=True)
    print("\n", file=sys.stderr)
    await everything


async def closed_or_silent(reader: Reader) -> bool:
    """Wait until the response ends; leave it, and return False, if it is silent for SILENCE_S."""
    request = reader.request
    while True:
        seen = request.num_bytes
        await asyncio.wait((request.ended,), timeout=SILENCE_S)
        if request.ended.done():
            await reader.closed()
            return True
        if request.num_bytes == seen:
            reader.leave("RST")
            return False


def report(did: Did, verdict: Verdict, *more: str) -> bool:
    """Print what was done and what came of it; return True if every invariant held."""
    print(", ".join(f"{n} x {what}" for what, n in sorted(did.items())))
    for line in more:
        print(line)
    print(verdict)
    return verdict.holds
