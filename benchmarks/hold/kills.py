"""Kills the engine (SIGKILL) under running streams, and measures failed streams and pauses.

A fixed number of streams runs at all times: when a stream ends, another one starts. The engine is
killed when every running stream has had a new event since the last kill. The pause of a stream is
the longest gap between two of its events around a kill. For comparison, the gaps during five
seconds without a kill are also measured.

Every stream's text is checked. The mock engine's text is known, because it numbers its tokens. The
built-in model's text is its greedy answer to the same prompt without kills. If two tokens are
about equally likely, llama.cpp's choice depends on the other sequences in its batch. So only those
prompts are used whose answer is the same alone and among as many others.
"""

import asyncio
import itertools
import signal
import time
from collections.abc import Callable
from typing import Any

from benchmarks.report import Figures, spread_ms
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


class SteadyStreams:
    """A fixed number of running streams: when a stream ends, another one starts."""

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
        """Start no more streams, and read the running streams to their ends."""
        self._is_ending = True
        await asyncio.gather(*self._tasks)

    async def all_have_progressed(self) -> None:
        """Wait until every running stream has had a new event."""
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
                        pass  # the stream ended meanwhile; wait for its successor
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
    """Kill the engine `number` times while `streams` streams run."""
    if engine == "mock":
        arguments = ["numbered=true", "length=100000"]
        with serve(engine="mock", mock_interval=0.02, engine_arg=arguments) as server:
            return await _measure(server, number, streams, _ask_mock)
    with serve(slots=streams, engine_arg=[f"n_ctx={1024 * streams}"]) as server:
        truths = await _stable_answers(server, streams)
        asked = itertools.cycle([(truth, fields) for truth, fields in truths])
        figures = await _measure(server, number, streams, lambda: next(asked))
        return {"prompts_used": f"{len(truths)} of {len(PROMPTS)}", **figures}


def _ask_mock() -> Asked:
    truth = numbered(fresh_word(), length=100_000, max_tokens=MAX_TOKENS)
    return truth, {"max_tokens": MAX_TOKENS}


async def _measure(
    server: RunningServer, number: int, streams: int, ask: Callable[[], Asked]
) -> Figures:
    running = SteadyStreams(server, ask)
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
            if around:  # otherwise its last event came before the kill
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
    """Return the gaps between events whose later event came after `after`, in seconds."""
    times = reader.arrivals or []
    return [b - a for a, b in itertools.pairwise(times) if after < b <= until]


async def _stable_answers(server: RunningServer, streams: int) -> list[Asked]:
    """Return the prompts whose answer is the same alone and among others, with that answer."""
    alone: dict[str, Truth] = {}
    for prompt in PROMPTS:
        alone |= await _answers(server, [prompt])
    among = [await _answers(server, (PROMPTS * streams)[:streams]) for _ in range(3)]
    return [
        (truth, _fields(prompt))
        for prompt, truth in alone.items()
        if all(answers.get(prompt, truth) == truth for answers in among)
    ]


async def _answers(server: RunningServer, prompts: list[str]) -> dict[str, Truth]:
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
