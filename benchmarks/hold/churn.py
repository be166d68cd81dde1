"""Connect and abort, over and over: does memory grow?

Each cycle opens a stream that cannot be resumed, reads its first event, and goes: by FIN or RST.
After each 1,000 the server comes to rest and its resident memory is read. It keeps of the last
10,000 streams how they ended, so growth that goes on after those is the one to look for: ask for
more than 10,000.
"""

import asyncio
import time

from benchmarks.hold.report import Figures
from tests.faults.checker import judge_server
from tests.faults.history import Held, History, numbered
from tests.faults.processes import held_by, processes_of, settled
from tests.faults.reading import Reader, fresh_word
from tests.support.servers import RunningServer, serve

AT_ONCE = 32
SAMPLE_EVERY = 1000
KNOWN = 10_000  # penstock.stream.registry.MAX_ENDED_KNOWN


async def measure(number: int) -> Figures:
    """`number` cycles, 32 at a time."""
    with serve(
        engine="mock", mock_interval=0.002, engine_arg=["numbered=true", "length=100000"]
    ) as server:
        before = held_by(server)
        began = time.monotonic()
        samples: list[list[float]] = []
        for start in range(0, number, SAMPLE_EVERY):
            await _cycles(server, min(SAMPLE_EVERY, number - start))
            after = await settled(server, before)
            samples.append([each.memory_info().rss / 2**20 for each in processes_of(server)][:2])
        seconds = time.monotonic() - began
    growth = _growth(samples)
    later = _growth(samples[KNOWN // SAMPLE_EVERY - 1 :])
    held = [Held(0, "before", *each) for each in before.items()]
    held += [Held(0, "after", *each) for each in after.items()]
    return {
        "cycles": number,
        "server_growth_mib_per_1000": round(growth[0], 3),
        "engine_growth_mib_per_1000": round(growth[1], 3),
        f"server_growth_mib_per_1000_after_the_first_{KNOWN}": round(later[0], 3),
        "server_mib_after_each_1000": [round(each[0], 2) for each in samples],
        "engine_mib_after_each_1000": [round(each[1], 2) for each in samples],
        "held_before": before,
        "held_after": after,
        "seconds": round(seconds, 1),
        "breaches": [str(breach) for breach in judge_server(held)],
    }


def _growth(samples: list[list[float]]) -> list[float]:
    """For each process, from the first sample to the last, for each sample between; 0 of fewer than
    two."""
    if len(samples) < 2:
        return [0.0, 0.0]
    ends = zip(samples[0], samples[-1], strict=True)
    return [(last - first) / (len(samples) - 1) for first, last in ends]


async def _cycles(server: RunningServer, number: int) -> None:
    history = History()
    left = iter(range(number))

    async def cycle() -> None:
        for each in left:
            reader = Reader(server.address, history)
            truth = numbered(fresh_word(), length=100_000, max_tokens=1000)
            await reader.open(truth, resumable=False, max_tokens=1000)
            await reader.got(0)
            reader.leave("RST" if each % 2 else "FIN")

    await asyncio.gather(*(cycle() for _ in range(AT_ONCE)))
