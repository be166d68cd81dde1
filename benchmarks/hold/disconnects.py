"""Clients that go: the time until the engine is told, on the engine's own side.

The mock engine reports from within its process when it is told to stop and each token that it
makes; both processes read the same clock. The time is from before the client's close to the
engine's `cancel`. Half of the clients go by FIN, half by RST, each at a random event.
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path

from benchmarks.hold.report import Figures, spread_ms
from tests.faults.checker import judge
from tests.faults.history import Abort, EngineDid, Entry, History, numbered
from tests.faults.reading import Reader, ask_how_it_ended, fresh_word
from tests.faults.reporting import Reports
from tests.support.servers import RunningServer, serve

AT_ONCE = 200
INTERVAL_S = 0.05
SETTLED_S = 60.0


async def measure(number: int) -> Figures:
    """`number` clients, 200 of them open at a time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine"
        reports = Reports(path)
        try:
            with serve(
                module="tests.faults.reporting",
                engine="mock",
                mock_interval=INTERVAL_S,
                engine_arg=["numbered=true", "length=100000", f'report="{path}"'],
            ) as server:
                return await _measure(server, reports, number)
        finally:
            reports.close()


async def _measure(server: RunningServer, reports: Reports, number: int) -> Figures:
    history = History()
    chance = random.Random(number)
    left = iter(range(number))

    async def come_and_go() -> None:
        for each in left:
            reader = Reader(server.address, history)
            truth = numbered(fresh_word(), length=100_000, max_tokens=1000)
            await reader.open(truth, resumable=False, max_tokens=1000)
            await reader.got(chance.randrange(40))
            reader.leave("RST" if each % 2 else "FIN")

    began = time.monotonic()
    await asyncio.gather(*(come_and_go() for _ in range(AT_ONCE)))
    seconds = time.monotonic() - began
    deadline = time.monotonic() + SETTLED_S
    times: list[float] = []
    while len(times) < number and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        reports.into(history)
        times = [
            took
            for stream in history.streams.values()
            if (took := _until_cancelled(stream.entries)) is not None
        ]
    for stream in history.streams:
        await ask_how_it_ended(server.address, history, stream)
    verdict = judge(history)
    after_abort = [_tokens_after(stream.entries) for stream in history.streams.values()]
    return {
        "clients": number,
        "gone_until_cancelled_in_the_engine": spread_ms(times),
        "never_cancelled": number - len(times),
        "tokens_made_after_the_client_had_gone_at_most": max(after_abort, default=0),
        "token_interval_ms": 1000 * INTERVAL_S,
        "endings": dict(verdict.endings),
        "seconds": round(seconds, 1),
        "breaches": [str(breach) for breach in verdict.breaches],
    }


def _until_cancelled(entries: list[Entry]) -> float | None:
    gone = next((each.time for each in entries if isinstance(each, Abort)), None)
    told = next(
        (each.time for each in entries if isinstance(each, EngineDid) and each.what == "cancelled"),
        None,
    )
    return told - gone if gone is not None and told is not None else None


def _tokens_after(entries: list[Entry]) -> int:
    gone = next((each.time for each in entries if isinstance(each, Abort)), float("inf"))
    return sum(
        isinstance(each, EngineDid) and each.what == "token" and each.time > gone
        for each in entries
    )
