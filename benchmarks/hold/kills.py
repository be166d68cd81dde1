"""Engine kills (SIGKILL) under running streams: failed streams, and the pause.

So many streams run at all times: one that ends is followed by another. A kill comes when every one
of them has had a new event since the last. The pause of a stream is the longest gap between two of
its events around a kill; the gaps of five seconds without a kill are in the figures too.

The truth of the mock is what it numbers. The truth of the built-in model is what it says to the
same prompts undisturbed, greedily. Where two tokens are as good as equal, llama.cpp's choice
depends on what else is in its batch, kill or no kill; so only those prompts are used to which it
says the same alone and among as many others.
"""

import asyncio
import itertools
import signal
import time
from collections.abc import Callable
from typing import Any

from benchmarks.hold.report import Figures, spread_ms
from tests.faults.checker import Verdict, judge_stream
from tests.faults.history import Got, History, Truth, numbered
from tests.faults.processes import kill_engine
from tests.faults.reading import Reader, RefusedError, fresh_word
from tests.support.servers import RunningServer, serve

Asked = tuple[Truth, dict[str, Any]]
MAX_TOKENS = 400
CALM_S = 5.0
PROMPTS = [
    f"{opening} {subject}"
    for opening in ("The old", "One day a", "My friend the", "In the town there was a")
    for subject in ("lighthouse", "dog", "king", "robot", "river", "garden", "train", "fish")
]


class Running:
    """The streams that run, each followed by another when it ends."""

    def __init__(self, server: RunningServer, ask: Callable[[], Asked]) -> None:
        self._server, self._ask = server, ask
        self._history = History()
        self.verdict = Verdict()
        self.readers: dict[int, Reader] = {}
        self.refused = 0
        self._is_ending = False
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, num_streams: int) -> None:
        self._tasks = [asyncio.create_task(self._keep(place)) for place in range(num_streams)]

    async def end(self) -> None:
        """Begin no more streams, and read those that run to their ends."""
        self._is_ending = True
        await asyncio.gather(*self._tasks)

    async def all_have_progressed(self) -> None:
        """Wait until each of the streams is one that has had an event since now."""
        for task in self._tasks:
            if task.done():
                task.result()
        for place in range(len(self._tasks)):
            while True:
                reader = self.readers.get(place)
                if reader is not None:
                    try:
                        await reader.got(reader.cursor + 1)
                    except ConnectionError:
                        pass  # it ended meanwhile; the next one counts
                    else:
                        break
                await asyncio.sleep(0.001)

    async def _keep(self, place: int) -> None:
        while not self._is_ending:
            truth, fields = self._ask()
            reader = Reader(self._server.address, self._history)
            reader.arrivals = []
            try:
                await reader.open(truth, resumable=place % 2 == 0, **fields)
            except RefusedError as refused:
                if refused.status != 503:
                    raise
                self.refused += 1
                await asyncio.sleep(0.02)
                continue
            self.readers[place] = reader
            await reader.read_through()
            del self.readers[place]
            self.verdict.add(judge_stream(self._history.take(reader.stream)))


async def measure(number: int, streams: int, engine: str) -> Figures:
    """Kill the engine `number` times under `streams` streams."""
    if engine == "mock":
        arguments = ["numbered=true", "length=100000"]
        with serve(engine="mock", mock_interval=0.02, engine_arg=arguments) as server:
            return await _measure(server, number, streams, _ask_mock)
    with serve(slots=streams, engine_arg=[f"n_ctx={1024 * streams}"]) as server:
        truths = await _told_alike(server, streams)
        asked = itertools.cycle([(truth, fields) for truth, fields in truths])
        figures = await _measure(server, number, streams, lambda: next(asked))
        return {"prompts_used": f"{len(truths)} of {len(PROMPTS)}", **figures}


def _ask_mock() -> Asked:
    truth = numbered(fresh_word(), length=100_000, max_tokens=MAX_TOKENS)
    return truth, {"max_tokens": MAX_TOKENS}


async def _measure(
    server: RunningServer, number: int, streams: int, ask: Callable[[], Asked]
) -> Figures:
    running = Running(server, ask)
    began = time.monotonic()
    pauses: list[float] = []
    gaps: list[float] = []
    restarts: list[float] = []
    running.begin(streams)
    await running.all_have_progressed()
    calm_from = time.monotonic()
    await asyncio.sleep(CALM_S)
    for reader in running.readers.values():
        gaps += _gaps(reader, calm_from, time.monotonic())
    for _ in range(number):
        await running.all_have_progressed()
        under = list(running.readers.values())
        killed_at = time.monotonic()
        await kill_engine(server, signal.SIGKILL)
        restarts.append(time.monotonic() - killed_at)
        await running.all_have_progressed()
        for reader in under:
            around = _gaps(reader, killed_at, time.monotonic())
            if around:  # else it had its last event before the kill
                pauses.append(max(around))
    await running.end()
    failed = sum(n for reason, n in running.verdict.endings.items() if reason.startswith("error"))
    return {
        "kills": number,
        "streams_at_once": streams,
        "streams_that_ended": sum(running.verdict.endings.values()),
        "failed_streams": failed,
        "pause": spread_ms(pauses),
        "gap_without_a_kill": spread_ms(gaps),
        "kill_until_ready_again": spread_ms(restarts),
        "new_requests_put_off": running.refused,
        "lost": running.verdict.counts["lost"],
        "duplicated": running.verdict.counts["duplicated"],
        "reordered": running.verdict.counts["reordered"],
        "endings": dict(running.verdict.endings),
        "seconds": round(time.monotonic() - began, 1),
        "breaches": [str(breach) for breach in running.verdict.breaches],
    }


def _gaps(reader: Reader, after: float, until: float) -> list[float]:
    """The gaps between events of which the later one came after `after`."""
    times = reader.arrivals or []
    return [b - a for a, b in itertools.pairwise(times) if after < b <= until]


async def _told_alike(server: RunningServer, streams: int) -> list[Asked]:
    """The prompts to which the model says the same alone and among others, and what it says."""
    alone: dict[str, Truth] = {}
    for prompt in PROMPTS:
        alone |= await _told(server, [prompt])
    among = [await _told(server, (PROMPTS * streams)[:streams]) for _ in range(3)]
    return [
        (truth, _fields(prompt))
        for prompt, truth in alone.items()
        if all(told.get(prompt, truth) == truth for told in among)
    ]


async def _told(server: RunningServer, prompts: list[str]) -> dict[str, Truth]:
    history = History()
    readers = []
    for prompt in prompts:
        reader = Reader(server.address, history)
        await reader.open(Truth("", "", 0), **_fields(prompt))
        readers.append(reader)
    truths = {}
    for prompt, reader in zip(prompts, readers, strict=True):
        end = await reader.read_through()
        entries = history.streams[reader.stream].entries
        text = "".join(entry.text for entry in entries if isinstance(entry, Got))
        truths[prompt] = Truth(text, end.reason, end.completion_tokens)
    return truths


def _fields(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS}
