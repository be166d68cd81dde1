"""Measures the time from a client's disconnect to the cancellation in the engine.

The mock engine reports from its own process when it is cancelled, and each token that it makes.
Both processes read the same clock. The time is from just before the client closes to the engine's
`cancel`. Half of the clients leave by FIN and half by RST, each after a random event.
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path

from benchmarks.hold.leaving import open_and_leave
from benchmarks.report import Figures, spread_ms
from tests.faults.checker import judge
from tests.faults.history import Abort, EngineDid, Entry, History
from tests.faults.reading import ask_how_it_ended
from tests.faults.reporting import Reports
from tests.support.servers import RunningServer, serve

AT_ONCE = 200
INTERVAL_S = 0.05
SETTLED_S = 60.0


async def measure(number: int) -> Figures:
    """Disconnect `number` clients, 200 of them connected at a time."""
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
    began = time.monotonic()
    await open_and_leave(
        server, history, number, at_once=AT_ONCE, last_event=lambda: chance.randrange(40)
    )
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
