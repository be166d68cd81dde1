"""Readers that never read: when they are dropped, what they hold until then, and whom they harm.

So many streams run, each with a good reader. In the first run each has a second good reader, in the
second a reader that has stopped reading: so the same is made, framed and logged in both.

What is held for a stalled reader is what the server has sent and the client has not taken. In the
kernel it is the transmit queue of the server's socket (/proc/net/tcp), at its largest. In the
server's process it is the difference of the two runs' largest resident memory, for each reader.

The time until it is dropped is from when the last byte went into the kernel: from then on the
server's send waits. Dropped means that the server's socket is no longer an established one.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

from benchmarks.hold.report import Figures, spread_ms
from tests.faults.checker import Rules, Verdict, judge
from tests.faults.history import HeldBytes, History, numbered
from tests.faults.processes import TcpState, processes_of, server_sockets
from tests.faults.reading import Reader, fresh_word
from tests.servers import RunningServer, serve

STALL_TIMEOUT_S = 3.0
INTERVAL_S = 0.05
LETTERS = 4000
SAMPLE_S = 0.05
BYTES_PER_READER = 256 * 1024


@dataclass
class Stalled:
    """What was seen of one stalled reader's socket, on the server's side."""

    reader: Reader
    port: int
    stopped_at: float
    most: int = 0
    full_at: float = 0.0
    dropped_at: float = 0.0
    gone_at: float = 0.0


@dataclass
class Run:
    """What one of the two runs showed."""

    verdict: Verdict
    gaps: list[float]
    rss_kib: float
    stalled: list[Stalled] = field(default_factory=list)


async def measure(readers: int) -> Figures:
    """`readers` streams, and as many stalled readers."""
    without = await _run(readers, stalled=False)
    beside = await _run(readers, stalled=True)
    dropped = [each for each in beside.stalled if each.dropped_at]
    kernel = [each.most for each in beside.stalled]
    process = (beside.rss_kib - without.rss_kib) / readers
    return {
        "stalled_readers": readers,
        "stall_timeout_s": STALL_TIMEOUT_S,
        "dropped": len(dropped),
        "full_until_dropped_s": _spread_s([each.dropped_at - each.full_at for each in dropped]),
        "stopped_until_dropped_s": _spread_s(
            [each.dropped_at - each.stopped_at for each in dropped]
        ),
        "stopped_until_gone_from_the_kernel_s": _spread_s(
            [each.gone_at - each.stopped_at for each in beside.stalled if each.gone_at]
        ),
        "still_in_the_kernel_at_the_end": sum(not each.gone_at for each in beside.stalled),
        "held_kib_in_the_kernel_at_most": round(max(kernel, default=0) / 1024, 1),
        "held_kib_in_the_process_each": round(process, 1),
        "good_readers_gap_without": spread_ms(without.gaps),
        "good_readers_gap_beside": spread_ms(beside.gaps),
        "good_readers_gap_p99_more_ms": round(
            spread_ms(beside.gaps)["p99_ms"] - spread_ms(without.gaps)["p99_ms"], 2
        ),
        "breaches": [str(b) for run in (without, beside) for b in run.verdict.breaches],
    }


def _spread_s(seconds: list[float]) -> Figures:
    return {
        "least": round(min(seconds, default=0.0), 2),
        "most": round(max(seconds, default=0.0), 2),
    }


async def _run(num_streams: int, *, stalled: bool) -> Run:
    length = 250
    with serve(
        engine="mock",
        mock_interval=INTERVAL_S,
        stall_timeout=STALL_TIMEOUT_S,
        engine_arg=["numbered=true", f"length={length}"],
    ) as server:
        history = History()
        good: list[Reader] = []
        others: list[Stalled] = []
        for _ in range(num_streams):
            truth = numbered(fresh_word(LETTERS), length=length, max_tokens=1000)
            reader = Reader(server.address, history)
            reader.arrivals = []
            await reader.open(truth, max_tokens=1000)
            good.append(reader)
            other = Reader(server.address, history)
            if stalled:
                other.receive_buffer = 4096
            await other.attach(reader.stream)
            if stalled:
                other.stop_reading()
                others.append(Stalled(other, other.port, time.monotonic()))
            else:
                good.append(other)
        most_rss = 0.0
        reading = asyncio.gather(*(reader.closed() for reader in good))
        while not reading.done():
            _look(server, others)
            (parent, *_) = processes_of(server)
            most_rss = max(most_rss, parent.memory_info().rss / 1024)
            await asyncio.wait((reading,), timeout=SAMPLE_S)
        for each in others:
            stream = each.reader.stream
            history.add(stream, HeldBytes(each.stopped_at, each.reader.name, each.most))
            each.reader.leave("RST")
        verdict = judge(history, Rules(bytes_per_reader=BYTES_PER_READER))
        gaps = [
            b - a
            for reader in good[:: 1 if stalled else 2]
            for a, b in itertools.pairwise(reader.arrivals or [])
        ]
        return Run(verdict, gaps, most_rss, others)


def _look(server: RunningServer, stalled: list[Stalled]) -> None:
    """One look at the server's sockets."""
    now = time.monotonic()
    sockets = server_sockets(server.port)
    for each in stalled:
        found = sockets.get(each.port)
        if found is not None and found.unsent > each.most:
            each.most, each.full_at = found.unsent, now
        if not each.dropped_at and (found is None or found.state != TcpState.ESTABLISHED):
            each.dropped_at = now
        if not each.gone_at and found is None:
            each.gone_at = now
