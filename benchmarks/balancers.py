"""Measures what the balancers of `deploy/` cost beside direct access to the same server.

    python -m benchmarks.balancers
    python -m benchmarks.balancers --streams 64 --tokens 400 --repeats 3

HAProxy, nginx, Caddy and Envoy run with the files that we ship, in front of one server whose mock
engine makes a token for each stream every 20 ms. Each way to the server, through each balancer with
plain HTTP/1.1 and with HTTP/2 over TLS, is measured directly before or after direct access, in
turns. A ratio is the median of these pairs' ratios.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from operator import truediv
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from benchmarks.paced import LENGTH, Round, measure
from tests.faults.http2_client import Http2Client
from tests.faults.proxy import Address
from tests.support.balancers import PROGRAMS, Balancer, balancers, replica, trusting, until_served
from tests.support.ports import free_port

TOKEN_S = 0.02
HEAD = (
    "first token, ms", "gap p50, ms", "gap p99, ms",
    "first ÷ direct", "p50 ÷ direct", "p99 ÷ direct", "balancer's CPU, µs/token",
)  # fmt: skip


class Load(NamedTuple):
    """The load of a measurement: how many streams at once, and how many tokens in each."""

    num_streams: int
    num_tokens: int


class Pair(NamedTuple):
    """Two measurements, one directly after the other."""

    direct: Round
    through: Round


async def through(proxy: Balancer, load: Load, *, http2: bool) -> Round:
    """Measure the way through a balancer."""
    parts = {"balancer": [proxy.process, *proxy.process.children(recursive=True)]}
    if not http2:
        await until_served(proxy.address)
        return await measure(proxy.address, parts, *load)
    client = Http2Client(trusting("h2"))
    try:
        await until_served(proxy.secure_address, client.send)
        return await measure(proxy.secure_address, parts, *load, client.send)
    finally:
        await client.close()


async def pair(server: Address, proxy: Balancer, load: Load, *, http2: bool, first: bool) -> Pair:
    """Measure both ways; `first` says whether direct access comes first."""
    if first:
        direct = await measure(server, {}, *load)
    found = await through(proxy, load, http2=http2)
    if not first:
        direct = await measure(server, {}, *load)
    return Pair(direct, found)


def row(way: str, pairs: Sequence[Pair]) -> str:
    """Return a line of the table."""
    times = ("first_ms", "gap_p50_ms", "gap_p99_ms")
    found = {name: [getattr(each.through, name) for each in pairs] for name in times}
    direct = {name: [getattr(each.direct, name) for each in pairs] for name in times}
    cells = [f"{median(found[name]):.1f}" for name in times]
    cells += [f"{median(map(truediv, found[name], direct[name])):.2f}" for name in times]
    cells.append(f"{median(each.through.cpu_us['balancer'] for each in pairs):.0f}")
    return f"| {way} | " + " | ".join(cells) + " |"


def main() -> None:
    """Start everything, measure, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.balancers")
    parser.add_argument("--streams", type=int, default=16, help="streams at once")
    parser.add_argument("--tokens", type=int, default=120, help="tokens of each stream")
    parser.add_argument("--repeats", type=int, default=4, help="pairs of each way")
    wanted = parser.parse_args()
    load = Load(wanted.streams, wanted.tokens)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = ["numbered=true", f"length={LENGTH}"]
        server = stack.enter_context(
            replica(str(folder / "log"), free_port(), mock_interval=TOKEN_S, engine_arg=engine)
        )
        proxies = stack.enter_context(balancers(PROGRAMS, folder, [server.port]))
        ways = {
            f"{name}, {'HTTP/2 over TLS' if http2 else 'HTTP/1.1'}": (proxy, http2)
            for name, proxy in proxies.items()
            for http2 in (False, True)
        }
        pairs: dict[str, list[Pair]] = {way: [] for way in ways}
        asyncio.run(measure(server.address, {}, *load))  # the first requests pay for imports
        for number in range(wanted.repeats):
            for way, (proxy, http2) in ways.items():
                asked = pair(server.address, proxy, load, http2=http2, first=number % 2 == 0)
                pairs[way].append(asyncio.run(asked))
    of_streams = f"{load.num_streams} streams, a token every {TOKEN_S * 1e3:g} ms"
    print(f"{of_streams}, {wanted.repeats} pairs, load {psutil.getloadavg()}\n")
    print("| | " + " | ".join(HEAD) + " |")
    print("|---" * (len(HEAD) + 1) + "|")
    for way, measured in pairs.items():
        print(row(way, measured))


if __name__ == "__main__":
    main()
