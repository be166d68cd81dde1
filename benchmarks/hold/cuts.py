"""Cuts connections at random and counts lost, duplicated and reordered events after resuming.

Readers connect through the fault proxy. It cuts every connection after a random number of bytes, by
FIN or RST, and slices or delays some of them. Readers resume until they have the whole stream.
Every event is compared with the known output of the numbered mock engine.
"""

import asyncio
import contextlib
import random
import time

from benchmarks.report import Figures
from tests.faults.checker import Verdict, judge_stream
from tests.faults.history import History, numbered
from tests.faults.proxy import CLOSES, Faults, Proxy, cut, latency, slices, sometimes
from tests.faults.reading import Reader, RefusedError, fresh_word
from tests.support.servers import serve

LENGTH = 60
READERS = 48
# A response has about 4,000 bytes, 200 of them in its head: cuts hit both, and miss some responses.
CUT_WITHIN_BYTES = 4500


def cut_anywhere(chance: random.Random) -> Faults:
    """Return faults that cut at a random byte. One connection in five is also sliced or slow."""
    return Faults(
        down=[
            *sometimes(chance, 0.2, slices(chance.randrange(1, 40))),
            *sometimes(chance, 0.2, latency(0.002, 0.002, chance)),
            cut(chance.randrange(CUT_WITHIN_BYTES), chance.choice(CLOSES)),
        ]
    )


async def measure(number: int) -> Figures:
    """Read streams until `number` responses have been cut."""
    history = History()
    verdict = Verdict()
    began = time.monotonic()
    cut_in_head = 0

    async def read(proxy: Proxy, chance: random.Random) -> None:
        nonlocal cut_in_head
        while verdict.counts["cut"] < number:
            max_tokens = chance.randrange(1, 2 * LENGTH)
            reader = Reader(proxy.address, history)
            truth = numbered(fresh_word(), length=LENGTH, max_tokens=max_tokens)
            while not reader.stream:
                try:
                    await reader.open(truth, max_tokens=max_tokens)
                except OSError:
                    cut_in_head += 1  # a stream cannot be resumed without its id
                except RefusedError:
                    await asyncio.sleep(0.05)
            await reader.read_through()
            verdict.add(judge_stream(history.take(reader.stream)))

    with serve(
        engine="mock",
        mock_interval=0.001,
        engine_arg=["numbered=true", f"length={LENGTH}"],
    ) as server:
        async with Proxy(server.address, cut_anywhere, seed=number) as proxy:
            reading = [
                asyncio.create_task(read(proxy, random.Random(each))) for each in range(READERS)
            ]
            try:
                await asyncio.gather(*reading)
            finally:
                for task in reading:
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(*reading, return_exceptions=True)
            all_cuts = proxy.num_cuts
    count = verdict.counts
    return {
        "cuts_within_a_body_and_resumed": count["cut"],
        "cuts_of_all_connections": all_cuts,
        "streams_opened_anew_as_cut_before_their_id": cut_in_head,
        "streams": count["streams"],
        "events_read": count["events"],
        "lost": count["lost"],
        "duplicated": count["duplicated"],
        "reordered": count["reordered"],
        "endings": dict(verdict.endings),
        "seconds": round(time.monotonic() - began, 1),
        "breaches": [str(breach) for breach in verdict.breaches],
    }
