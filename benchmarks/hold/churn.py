"""Connects and aborts repeatedly, and measures memory growth.

Each cycle opens a stream that cannot be resumed, reads its first event, and leaves by FIN or RST.
After every 1,000 cycles, when the server is idle, its resident memory is read. The server remembers
how the last 10,000 streams ended, so its memory grows until then. Run more than 10,000 cycles to
see growth that does not stop.
"""

import time

from benchmarks.hold.leaving import open_and_leave
from benchmarks.report import Figures
from penstock.stream.kept import MAX_ENDINGS
from tests.faults.checker import judge_server
from tests.faults.history import Held, History
from tests.faults.processes import held_by, processes_of, settled
from tests.support.servers import serve

AT_ONCE = 32
SAMPLE_EVERY = 1000


async def measure(number: int) -> Figures:
    """Run `number` cycles, 32 at a time."""
    with serve(
        engine="mock", mock_interval=0.002, engine_arg=["numbered=true", "length=100000"]
    ) as server:
        before = held_by(server)
        began = time.monotonic()
        samples: list[list[float]] = []
        for start in range(0, number, SAMPLE_EVERY):
            cycles = min(SAMPLE_EVERY, number - start)
            await open_and_leave(server, History(), cycles, at_once=AT_ONCE, last_event=lambda: 0)
            after = await settled(server, before)
            samples.append([each.memory_info().rss / 2**20 for each in processes_of(server)][:2])
        seconds = time.monotonic() - began
    growth = _growth(samples)
    later = _growth(samples[MAX_ENDINGS // SAMPLE_EVERY - 1 :])
    held = [Held(0, "before", *each) for each in before.items()]
    held += [Held(0, "after", *each) for each in after.items()]
    return {
        "cycles": number,
        "server_growth_mib_per_1000": round(growth[0], 3),
        "engine_growth_mib_per_1000": round(growth[1], 3),
        f"server_growth_mib_per_1000_after_the_first_{MAX_ENDINGS}": round(later[0], 3),
        "server_mib_after_each_1000": [round(each[0], 2) for each in samples],
        "engine_mib_after_each_1000": [round(each[1], 2) for each in samples],
        "held_before": before,
        "held_after": after,
        "seconds": round(seconds, 1),
        "breaches": [str(breach) for breach in judge_server(held)],
    }


def _growth(samples: list[list[float]]) -> list[float]:
    """Return each process's mean growth from sample to sample, 0 with fewer than two samples."""
    if len(samples) < 2:
        return [0.0, 0.0]
    ends = zip(samples[0], samples[-1], strict=True)
    return [(last - first) / (len(samples) - 1) for first, last in ends]
