"""Measure how much faster two complete stacks are, one per core, than one stack on one core.

    python -m benchmarks.processes
    python -m benchmarks.processes --engine llamacpp --streams 8

Two servers run side by side: one with `--processes 1` on one core, and one with `--processes 2` on
two. They are measured in turns, each stack under the same number of streams; a pair is one turn of
each. The figure is the median of the pairs' ratios. The clients read and drop what they get. They
run on the other cores; if there are none, they take a part of the stacks' cores, and the ratio is
less than it could be. Use a quiet machine: `noise` says how quiet it was.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks.noise import Noise, spread
from benchmarks.report import Figures, circumstances, prepare_client, show
from tests.support.raw import generate
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve

MODULE = "benchmarks.processes"
TOKENS = "penstock_completion_tokens_total"
READ_BYTES = 1 << 16
# The first tokens of all streams come before the measurement.
WARM_UP_S = 0.5
MAX_TOKENS = 100_000


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Run this process, and what it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def read_streams(port: int) -> None:
    """Read one stream after the other, for ever."""
    asked = generate("Once upon a time", max_tokens=MAX_TOKENS)
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asked.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        with contextlib.closing(writer):
            while await reader.read(READ_BYTES):
                pass


async def tokens_per_s(server: RunningServer, num_streams: int, seconds: float) -> float:
    """Return the tokens per second of a server under so many streams."""
    reading = [asyncio.create_task(read_streams(server.port)) for _ in range(num_streams)]
    try:
        await asyncio.sleep(WARM_UP_S)
        began, before = time.monotonic(), (await asyncio.to_thread(Scrape, server))(TOKENS)
        await asyncio.sleep(seconds)
        after = (await asyncio.to_thread(Scrape, server))(TOKENS)
        return (after - before) / (time.monotonic() - began)
    finally:
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def measure(engine: str, num_streams: int, pairs: int, seconds: float) -> Figures:
    """Measure `pairs` times one stack, then two."""
    first, second, *others = sorted(os.sched_getaffinity(0))
    flags: dict[str, object] = {"engine": engine, "slots": num_streams}
    if engine == "mock":
        flags |= {"mock_interval": 0, "engine_arg": ["length=100000", "context_length=1000000"]}
    noise = Noise({"first": first, "second": second})
    one: list[float] = []
    two: list[float] = []
    with contextlib.ExitStack() as stack:
        with on_cores({first}):
            single = stack.enter_context(serve(**flags))
        with on_cores({first, second}):
            double = stack.enter_context(serve(processes=2, **flags))
        stack.enter_context(on_cores(set(others) or {first, second}))
        for _ in range(pairs):
            noise.sample()
            one.append(await tokens_per_s(single, num_streams, seconds))
            two.append(await tokens_per_s(double, 2 * num_streams, seconds))
    ratios = [both / alone for alone, both in zip(one, two, strict=True)]
    return {
        "engine": engine,
        "streams of a stack": num_streams,
        "pairs": pairs,
        "cores of the clients": len(others) or "shared with the stacks",
        "one stack, tokens/s": spread(one),
        "two stacks, tokens/s": spread(two),
        "speed-up, median": round(statistics.median(ratios), 3),
        "speed-up": spread(ratios),
        "noise": noise.report(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="mock", choices=["mock", "llamacpp"])
    parser.add_argument("--streams", type=int, default=32, help="the streams of each stack")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="the length of a turn")
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("this needs two cores")
    prepare_client()
    figures = uvloop.run(
        measure(arguments.engine, arguments.streams, arguments.pairs, arguments.seconds)
    )
    show(MODULE, "processes", figures)
    if arguments.out is not None:
        found = {"figure": "processes", **circumstances(MODULE), **figures}
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
