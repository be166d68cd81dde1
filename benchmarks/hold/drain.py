"""Sends SIGTERM under running streams, and measures how the server drains.

It measures how soon readiness turns to 503, whether every stream gets its terminal event, and when
the server exits. A third of the streams end by themselves while the server drains, the others do
not. Half of the streams are resumable.
"""

import asyncio
import collections
import signal
import time
from dataclasses import replace

from benchmarks.report import Figures
from tests.faults.checker import judge
from tests.faults.history import History, numbered
from tests.faults.processes import processes_of, still_there, until_readiness
from tests.faults.reading import Reader, RefusedError, fresh_word
from tests.support.servers import serve

DRAIN_S = 5.0
INTERVAL_S = 0.02


async def measure(streams: int) -> Figures:
    """Send SIGTERM under `streams` streams."""
    history = History()
    with serve(
        engine="mock",
        mock_interval=INTERVAL_S,
        drain_timeout=DRAIN_S,
        engine_arg=["numbered=true", "length=100000"],
    ) as server:
        pids = [process.pid for process in processes_of(server)]
        readers = []
        for each in range(streams):
            max_tokens = round(DRAIN_S / 2 / INTERVAL_S) if each % 3 == 0 else 1000
            truth = numbered(fresh_word(), length=100_000, max_tokens=max_tokens)
            truth = replace(truth, may_fail=max_tokens == 1000)
            reader = Reader(server.address, history)
            await reader.open(truth, resumable=each % 2 == 0, max_tokens=max_tokens)
            readers.append(reader)
        await asyncio.gather(*(reader.got(0) for reader in readers))
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        await until_readiness(server.address, 503)
        unready_s = time.monotonic() - began
        refusal = ""
        try:
            await Reader(server.address, history).open(numbered("late", length=1, max_tokens=1))
        except RefusedError as refused:
            refusal = f"{refused.status} {refused.code}"
        ends = collections.Counter(await asyncio.gather(*(each.closed() for each in readers)))
        ended_s = time.monotonic() - began
        returncode = await asyncio.to_thread(server.process.wait, 60)
        exited_s = time.monotonic() - began
    verdict = judge(history)
    return {
        "streams": streams,
        "drain_timeout_s": DRAIN_S,
        "signal_until_readiness_503_ms": round(1000 * unready_s, 1),
        "a_new_request_meanwhile": refusal,
        "streams_with_a_terminal_event": sum(reader.ended is not None for reader in readers),
        "endings": dict(verdict.endings),
        "responses_by_how_they_ended": dict(ends),
        "all_ended_after_s": round(ended_s, 2),
        "exited_after_s": round(exited_s, 2),
        "exit_code": returncode,
        "processes_left": len(still_there(pids)),
        "breaches": [str(breach) for breach in verdict.breaches],
    }
