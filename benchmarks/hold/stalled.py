"""Measures readers that stop reading: when they are dropped, and their effect on other readers.

Each stream has a good reader and a second reader. In the first run the second reader is good too.
In the second run it has stopped reading. So the server makes, frames and logs the same in both.

A reader counts as dropped when the server logs it. Half of the dropped readers then read on: the
bytes that still arrive until the cut are all that was held for them, in both kernels and in the
server. The other half never read again: their sockets stay until the kernel gives up.
"""

import asyncio
import itertools
import re
import time
from dataclasses import dataclass

from benchmarks.report import Figures, spread_ms
from tests.faults.checker import Rules, Verdict, judge
from tests.faults.history import HeldBytes, History, numbered
from tests.faults.processes import server_sockets
from tests.faults.reading import Reader, fresh_word
from tests.support.servers import RunningServer, serve

STALL_TIMEOUT_S = 3.0
INTERVAL_S = 0.05
LENGTH = 300
LETTERS = 4000
RECEIVE_BUFFER = 4096
SAMPLE_S = 0.05
PATIENCE_S = 90.0
BYTES_PER_READER = 256 * 1024
DROPPED = re.compile(r"ended a reader that took nothing for (\d+) s")


@dataclass
class Stalled:
    """A stalled reader: its local port, the bytes held for it, and its times in clock seconds."""

    reader: Reader
    port: int
    stopped_at: float
    held: int = 0
    gone_at: float = 0.0


@dataclass
class StalledRun:
    """The results of one of the two runs. Times in seconds."""

    verdict: Verdict
    gaps: list[float]
    stalled: list[Stalled]
    dropped_after: list[float]
    waited: list[float]


async def measure(readers: int) -> Figures:
    """Run `readers` streams without stalled readers, and then with a stalled reader each."""
    without = await _run(readers, stalled=False)
    with_stalled = await _run(readers, stalled=True)
    held = [each.held for each in with_stalled.stalled if each.held]
    gone = [each.gone_at - each.stopped_at for each in with_stalled.stalled if each.gone_at]
    calm, troubled = spread_ms(without.gaps), spread_ms(with_stalled.gaps)
    return {
        "stalled_readers": readers,
        "stall_timeout_s": STALL_TIMEOUT_S,
        "dropped": len(with_stalled.dropped_after),
        "send_had_waited_s_as_the_server_says": _spread(with_stalled.waited),
        "stopped_reading_until_dropped_s": _spread(with_stalled.dropped_after),
        "stopped_reading_until_the_socket_is_gone_s": {**_spread(gone), "of": len(gone)},
        "held_in_all_kib": {**_spread([each / 1024 for each in held]), "of": len(held)},
        "good_readers_gap_without": calm,
        "good_readers_gap_beside": troubled,
        "good_readers_gap_p99_more_ms": round(troubled["p99_ms"] - calm["p99_ms"], 2),
        "breaches": [str(b) for run in (without, with_stalled) for b in run.verdict.breaches],
    }


def _spread(values: list[float]) -> Figures:
    return {
        "least": round(min(values, default=0.0), 2),
        "most": round(max(values, default=0.0), 2),
    }


async def _run(num_streams: int, *, stalled: bool) -> StalledRun:
    with serve(
        engine="mock",
        mock_interval=INTERVAL_S,
        stall_timeout=STALL_TIMEOUT_S,
        engine_arg=["numbered=true", f"length={LENGTH}"],
    ) as server:
        history = History()
        first, second = [], []
        for _ in range(num_streams):
            reader, other = (Reader(server.address, history) for _ in range(2))
            reader.arrivals = []
            truth = numbered(fresh_word(LETTERS), length=LENGTH, max_tokens=1000)
            await reader.open(truth, max_tokens=1000)
            other.receive_buffer = RECEIVE_BUFFER if stalled else 0
            await other.attach(reader.stream)
            first.append(reader)
            second.append(other)
        others = []
        if stalled:
            for reader in second:
                reader.stop_reading()
                others.append(Stalled(reader, reader.port, time.monotonic()))
        reading = asyncio.gather(
            *(reader.closed() for reader in (first if stalled else first + second))
        )
        seen = _Observer(server, others)
        while not (reading.done() and seen.is_done):
            seen.look()
            await asyncio.sleep(SAMPLE_S)
        for each in others[::2]:
            stream = each.reader.stream
            history.add(stream, HeldBytes(time.monotonic(), each.reader.name, each.held))
        for each in others[1::2]:
            each.reader.leave("RST")
        verdict = judge(history, Rules(bytes_per_reader=BYTES_PER_READER))
        gaps = [b - a for reader in first for a, b in itertools.pairwise(reader.arrivals or [])]
        return StalledRun(verdict, gaps, others, seen.dropped_after, seen.waited)


class _Observer:
    """Watches the server's log and sockets, and lets half of the dropped readers read on."""

    def __init__(self, server: RunningServer, stalled: list[Stalled]) -> None:
        self._server, self._stalled = server, stalled
        self._began = time.monotonic()
        self._reading: list[asyncio.Task[None]] = []
        self.dropped_after: list[float] = []
        self.waited: list[float] = []

    @property
    def is_done(self) -> bool:
        """True if every stalled reader is gone, or after 90 seconds."""
        if time.monotonic() - self._began > PATIENCE_S:
            return True
        is_read = len(self._reading) == len(self._stalled[::2])
        return (
            is_read
            and all(task.done() for task in self._reading)
            and all(each.gone_at for each in self._stalled[1::2])
        )

    def look(self) -> None:
        """Record the readers that have been dropped and the sockets that are gone."""
        now = time.monotonic()
        if not self._stalled:
            return
        found = [
            float(match[1])
            for line in list(self._server.output)
            if (match := DROPPED.search(line)) is not None
        ]
        stopped_at = min(each.stopped_at for each in self._stalled)
        self.dropped_after += [now - stopped_at] * (len(found) - len(self.waited))
        self.waited = found
        if len(found) >= len(self._stalled) and not self._reading:
            self._reading = [
                asyncio.create_task(_read_what_is_held(each)) for each in self._stalled[::2]
            ]
        sockets = server_sockets(self._server.port)
        for each in self._stalled[1::2]:
            if not each.gone_at and each.port not in sockets:
                each.gone_at = now


async def _read_what_is_held(stalled: Stalled) -> None:
    request = stalled.reader.request
    before = request.num_bytes
    stalled.reader.read_on()
    await stalled.reader.closed()
    stalled.held = request.num_bytes - before
