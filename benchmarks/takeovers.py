"""Kills, stops or replaces servers in mid-answer, and measures what clients notice.

    python -m benchmarks.takeovers                      kill -9, logs in a folder
    python -m benchmarks.takeovers --how stop --log redis://127.0.0.1:6379/0
    python -m benchmarks.takeovers --how deploy

Three replicas run over one store. In each round, clients open streams at one of them. In
mid-answer, this one is killed (kill), stopped for longer than its lease and continued (stop), or
asked to end, as for a deploy (deploy); then another replica is started in its place. Each client
goes on at the other replicas. The mock engine numbers its tokens, so every token that is lost,
repeated or changed shows. A pause is the time from the fault to a stream's next token.

Out: how many streams were taken over, how many were wrong, and the pauses. The exit status is 1 if
a stream was wrong.
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

import uvloop

from benchmarks.report import spread_ms
from tests.faults.checker import Verdict, judge
from tests.faults.history import History
from tests.faults.roving import RovingReader
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

    def replace(self) -> None:
        """Start a replica in the place of the first; the second is the next victim."""
        self.running = [*self.running[1:], self._start()]

    def close(self) -> None:
        self._stack.close()


async def round_of(replicas: Replicas, how: str, num_streams: int) -> tuple[Verdict, list[float]]:
    """Run one round; return the verdict on its streams, and their pauses in seconds."""
    history = History()
    addresses = [server.address for server in replicas.running]
    readers = [RovingReader(addresses, history) for _ in range(num_streams)]
    await asyncio.gather(*(reader.begin(NUM_TOKENS) for reader in readers))
    await asyncio.sleep(random.uniform(*FAULT_S))
    victim = replicas.running[0]
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
    await asyncio.to_thread(replicas.replace if how != "stop" else lambda: None)
    pauses = [reader.pause_after(fault_at) for reader in readers]
    return judge(history), [pause for pause in pauses if pause is not None]


async def run(how: str, log: str, rounds: int, num_streams: int) -> bool:
    """Run all rounds and show their figures; return True if every stream was right."""
    replicas = await asyncio.to_thread(Replicas, log)
    verdict, pauses = Verdict(), list[float]()
    try:
        for number in range(rounds):
            seen, paused = await round_of(replicas, how, num_streams)
            verdict.add(seen)
            pauses += paused
            print(f"round {number + 1} of {rounds}: {spread_ms(paused)}", file=sys.stderr)
    finally:
        with contextlib.suppress(AssertionError):
            await asyncio.to_thread(replicas.close)
    print(verdict)
    print(f"{how}: {len(pauses)} streams went on; pause in ms: {spread_ms(pauses)}")
    return verdict.holds


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--how", choices=["kill", "stop", "deploy"], default="kill")
    parser.add_argument("--log", default="", help="a folder or redis://…; a new folder by default")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--streams", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        is_right = uvloop.run(run(given.how, given.log or folder, given.rounds, given.streams))
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
