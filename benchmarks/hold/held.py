"""Holds many streams open at once, and measures drops and memory per stream.

Each stream is resumable and gets a token per second. Memory is the resident set of the server's
process and of the engine's: before, when all streams are open, while they run, and after they have
ended (when the server still keeps their events for --retain).
"""

import asyncio
import collections
import time

from benchmarks.report import Figures, spread_ms
from tests.faults.checker import judge
from tests.faults.history import History, numbered
from tests.faults.processes import held_by, processes_of, readiness, settled
from tests.faults.reading import Reader, fresh_word
from tests.support.servers import RunningServer, serve

INTERVAL_S = 1.0
OPENERS = 50
SAMPLE_S = 2.0


async def measure(streams: int, minutes: float) -> Figures:
    """Hold `streams` streams open for `minutes`."""
    num_tokens = round(minutes * 60 / INTERVAL_S) + 60
    if num_tokens > 1024:
        raise SystemExit("use --minutes 16 or less: a stream has at most 1,024 tokens")
    with serve(
        engine="mock",
        mock_interval=INTERVAL_S,
        linger=600,
        engine_arg=["numbered=true", f"length={num_tokens}"],
    ) as server:
        return await _measure(server, streams, minutes, num_tokens)


def _rss_kib(server: RunningServer) -> list[float]:
    """Return the resident memory of the server's process and of the engine's, in KiB."""
    return [process.memory_info().rss / 1024 for process in processes_of(server)][:2]


async def _measure(server: RunningServer, streams: int, minutes: float, num_tokens: int) -> Figures:
    history = History()
    await _one_stream(server)  # so that everything that loads on first use is loaded
    before = held_by(server)
    rss_before = _rss_kib(server)
    readers: list[Reader] = []
    places = iter(range(streams))

    async def open_some() -> None:
        for each in places:
            # One source address has only about 28,000 ports.
            reader = Reader(server.address, history, source=f"127.0.0.{2 + each % 8}")
            truth = numbered(fresh_word(), length=num_tokens, max_tokens=1024)
            await reader.open(truth, max_tokens=1024)
            readers.append(reader)

    began = time.monotonic()
    await asyncio.gather(*(open_some() for _ in range(OPENERS)))
    opening_s = time.monotonic() - began
    await asyncio.gather(*(reader.got(0) for reader in readers))
    rss_open = _rss_kib(server)
    probes: list[float] = []
    deadline = time.monotonic() + minutes * 60
    while time.monotonic() < deadline:
        asked_at = time.monotonic()
        assert await readiness(server.address) == 200
        probes.append(time.monotonic() - asked_at)
        await asyncio.sleep(SAMPLE_S)
    rss_held = _rss_kib(server)
    held_events = sum(reader.cursor + 1 for reader in readers)
    dropped = sum(reader.is_over for reader in readers)
    ends = await asyncio.gather(*(reader.closed() for reader in readers))
    rss_ended = _rss_kib(server)
    history.hold("before", before)
    history.hold("after", await settled(server, before, 10))
    verdict = judge(history)
    (server_before, engine_before) = rss_before
    return {
        "streams_at_once": streams,
        "minutes": minutes,
        "opened_in_s": round(opening_s, 2),
        "dropped_while_held": dropped,
        "responses_by_how_they_ended": dict(collections.Counter(ends)),
        "endings": dict(verdict.endings),
        "events_held_per_stream": round(held_events / streams, 1),
        "server_kib_per_stream": {
            "when_open": round((rss_open[0] - server_before) / streams, 1),
            "while_held": round((rss_held[0] - server_before) / streams, 1),
            "ended_and_kept": round((rss_ended[0] - server_before) / streams, 1),
        },
        "engine_kib_per_stream": {
            "when_open": round((rss_open[1] - engine_before) / streams, 1),
            "while_held": round((rss_held[1] - engine_before) / streams, 1),
        },
        "server_mib": _in_mib(rss_before[0], rss_open[0], rss_held[0], rss_ended[0]),
        "engine_mib": _in_mib(rss_before[1], rss_open[1], rss_held[1], rss_ended[1]),
        "health_while_held": spread_ms(probes),
        "lost": verdict.counts["lost"],
        "duplicated": verdict.counts["duplicated"],
        "breaches": [str(breach) for breach in verdict.breaches],
    }


def _in_mib(*kib: float) -> Figures:
    names = ("before", "when_open", "while_held", "ended")
    return {name: round(each / 1024, 1) for name, each in zip(names, kib, strict=True)}


async def _one_stream(server: RunningServer) -> None:
    reader = Reader(server.address, History())
    await reader.open(numbered(fresh_word(), length=1, max_tokens=1), max_tokens=1)
    await reader.read_through()
