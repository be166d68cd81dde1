"""Kills, stops or replaces servers in mid-answer, and measures what clients notice.

    python -m benchmarks.takeovers                      kill -9, logs in a folder
    python -m benchmarks.takeovers --how stop --log redis://127.0.0.1:6379/0
    python -m benchmarks.takeovers --how deploy
    python -m benchmarks.takeovers --how resume         nothing fails; clients resume elsewhere
    python -m benchmarks.takeovers --rounds 40 --streams 256          10,240 takeovers

Three replicas run over one store. In each round, clients open streams at one of them. In
mid-answer, this one is killed (kill), stopped for longer than its lease and continued (stop), or
asked to end, as for a deploy (deploy); then another replica is started in its place. Each client
goes on at the other replicas. The mock engine numbers its tokens, so every token that is lost,
repeated or changed shows. A pause is the longest time without a token of a stream
after the fault, at its client. With
`resume`, a second client reads each stream from its beginning at another replica, one after the
other; the figure is the time from its request to the first event.

Out: how many streams the replicas took over, how many tokens were wrong, and the times. The exit
status is 1 if a stream was wrong.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass

import uvloop

from benchmarks.report import spread_ms
from tests.faults.checker import Verdict, judge
from tests.faults.history import History
from tests.faults.reading import Reader
from tests.faults.roving import RovingReader
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve

MODULE = "benchmarks.takeovers"
NUM_REPLICAS = 3
TOKEN_S = 0.05
NUM_TOKENS = 120
# The fault comes after the first token, and well before the last one.
FAULT_S = (0.5, 2.0)
STOP_S = 4.0


class Replicas:
    """The running replicas, the next victim first."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._stack = ExitStack()
        self.running = [self._start() for _ in range(NUM_REPLICAS)]

    def _start(self) -> RunningServer:
        server = serve(
            engine="mock",
            mock_interval=TOKEN_S,
            engine_arg=["numbered=true", "length=1000000"],
            log=self._log,
            max_queue=10_000,
        )
        return self._stack.enter_context(server)

    def add(self) -> None:
        """Start a replica in the place of one that has ended; the first one is the next victim."""
        self.running.append(self._start())

    def close(self) -> None:
        self._stack.close()


def num_takeovers(servers: list[RunningServer]) -> int:
    """Return how many streams these servers have taken over."""
    return sum(int(Scrape(server)("penstock_takeovers_total")) for server in servers)


@dataclass
class Round:
    """The result of one round. `seconds` has each stream's pause, or time to the first event."""

    verdict: Verdict
    seconds: list[float]
    num_taken_over: int


async def round_of(replicas: Replicas, how: str, num_streams: int) -> Round:
    """Let a replica fail in mid-answer, and let its clients go on at the others."""
    history = History()
    addresses = [server.address for server in replicas.running]
    readers = [RovingReader(addresses, history) for _ in range(num_streams)]
    await asyncio.gather(*(reader.begin(NUM_TOKENS) for reader in readers))
    await asyncio.sleep(random.uniform(*FAULT_S))
    victim, *others = replicas.running
    # The count of a killed replica ends with it.
    counted = replicas.running if how == "stop" else others
    before = await asyncio.to_thread(num_takeovers, counted)
    if how == "resume":
        times = [await first_event(others[0], reader.stream, history) for reader in readers]
        await asyncio.gather(*(reader.read_through() for reader in readers))
        return Round(judge(history), times, 0)
    fault_at = time.monotonic()
    if how == "deploy":
        victim.signal(signal.SIGTERM)
    elif how == "stop":
        victim.signal(signal.SIGSTOP)
        asyncio.get_running_loop().call_later(STOP_S, victim.signal, signal.SIGCONT)
        for reader in readers:  # their clients notice the silence, and ask elsewhere
            reader.leave()
    else:
        os.kill(victim.pid, signal.SIGKILL)
    await asyncio.gather(*(reader.read_through() for reader in readers))
    if how != "stop":
        await asyncio.to_thread(victim.process.wait)
        replicas.running = others
    taken_over = await asyncio.to_thread(num_takeovers, counted) - before
    if how != "stop":
        await asyncio.to_thread(replicas.add)
    pauses = [reader.longest_pause_after(fault_at) for reader in readers]
    return Round(judge(history), [each for each in pauses if each is not None], taken_over)


async def first_event(server: RunningServer, stream: str, history: History) -> float:
    """Return the seconds from a request for a stream to its first event."""
    reader = Reader(server.address, history)
    began = time.monotonic()
    await reader.attach(stream)
    await reader.got(0)
    seconds = time.monotonic() - began
    reader.leave()
    return seconds


async def run(how: str, log: str, rounds: int, num_streams: int) -> bool:
    """Run all rounds and show their figures; return True if every stream was right."""
    replicas = await asyncio.to_thread(Replicas, log)
    total = Round(Verdict(), [], 0)
    try:
        for number in range(rounds):
            one = await round_of(replicas, how, num_streams)
            total.verdict.add(one.verdict)
            total.seconds += one.seconds
            total.num_taken_over += one.num_taken_over
            figures = f"{one.num_taken_over} taken over, {spread_ms(one.seconds)}"
            print(f"round {number + 1} of {rounds}: {figures}", file=sys.stderr)
    finally:
        with contextlib.suppress(AssertionError):
            await asyncio.to_thread(replicas.close)
    show(how, total)
    return total.verdict.holds


def show(how: str, total: Round) -> None:
    """Print the table of all rounds."""
    counts, times = total.verdict.counts, spread_ms(total.seconds)
    changed = sum(each.invariant == "I1" for each in total.verdict.breaches)
    what = "first event" if how == "resume" else "pause"
    print(total.verdict)
    print("| | streams | taken over | lost | repeated | changed | p50 | p99 | greatest |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {how}: {what} | {counts['streams']} | {total.num_taken_over} | {counts['lost']}"
        f" | {counts['duplicated']} | {changed} | {times['p50_ms']} ms"
        f" | {times['p99_ms']} ms | {times['max_ms']} ms |"
    )


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--how", choices=["kill", "stop", "deploy", "resume"], default="kill")
    parser.add_argument("--log", default="", help="a folder or redis://…; a new folder by default")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--streams", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        is_right = uvloop.run(run(given.how, given.log or folder, given.rounds, given.streams))
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
