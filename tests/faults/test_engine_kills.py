"""The engine's process is killed or stopped during streams: they pause and miss nothing."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from tests.faults.checker import judge
from tests.faults.history import Got, History, Truth, numbered
from tests.faults.processes import (
    PROBE_S,
    engine_pids,
    kill_engine,
    signal_engine,
    until_readiness,
)
from tests.faults.reading import Reader, RefusedError, fresh_word
from tests.support.servers import RunningServer, serve

LENGTH = 300
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    arguments = ["numbered=true", f"length={LENGTH}"]
    with serve(
        engine="mock", mock_interval=0.01, engine_timeout=2, engine_arg=arguments
    ) as running:
        yield running


async def opened(server: RunningServer, history: History, num: int) -> list[Reader]:
    """Open `num` streams, half of them resumable, and wait for the first event of each."""
    await until_readiness(server.address, 200)
    readers = []
    for each in range(num):
        reader = Reader(server.address, history)
        truth = numbered(fresh_word(), length=LENGTH, max_tokens=1000)
        await reader.open(truth, resumable=each % 2 == 0, max_tokens=1000)
        readers.append(reader)
    await asyncio.gather(*(reader.got(0) for reader in readers))
    return readers


async def all_go_on(readers: list[Reader]) -> None:
    """Wait until each reader has one more event."""
    await asyncio.gather(*(reader.got(reader.cursor + 1) for reader in readers))


async def all_end(readers: list[Reader]) -> None:
    await asyncio.gather(*(reader.closed() for reader in readers))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
async def test_streams_go_on_after_the_engine_s_death_and_miss_nothing(
    server: RunningServer, number: signal.Signals
) -> None:
    history = History()
    async with asyncio.timeout(PATIENCE_S):
        readers = await opened(server, history, 8)
        for _ in range(3):
            await kill_engine(server, number)
            await all_go_on(readers)
        await all_end(readers)
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.endings == {"stop": 8}
    assert verdict.counts["cut"] == 0


async def test_streams_are_cut_while_the_engine_is_dead_and_resume_all_the_same(
    server: RunningServer,
) -> None:
    history = History()
    async with asyncio.timeout(PATIENCE_S):
        readers = await opened(server, history, 12)
        assert signal_engine(server, signal.SIGKILL)
        for reader in readers:
            if reader.is_resumable:
                reader.leave("RST")
        await asyncio.gather(*(reader.read_through() for reader in readers))
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.endings == {"stop": 12}
    assert verdict.counts["resumed"] >= 6


async def test_new_requests_are_refused_until_the_running_streams_go_on(
    server: RunningServer,
) -> None:
    history = History()
    refusals: set[tuple[int, str]] = set()

    async def ask() -> None:
        reader = Reader(server.address, history)
        truth = numbered(fresh_word(), length=LENGTH, max_tokens=2)
        try:
            await reader.open(truth, max_tokens=2)
        except RefusedError as error:
            refusals.add((error.status, error.code))
        else:
            await reader.read_through()

    async with asyncio.timeout(PATIENCE_S):
        readers = await opened(server, history, 2)
        killed = signal_engine(server, signal.SIGKILL)
        asking = []
        while not refusals:  # requests that precede the server's notice are accepted and wait
            if engine_pids(server) not in ([], [killed]):  # it was back before anybody asked
                killed = signal_engine(server, signal.SIGKILL)
            asking.append(asyncio.create_task(ask()))
            await asyncio.wait(asking, timeout=PROBE_S)
        await asyncio.gather(*asking)
        await until_readiness(server.address, 200)
        await ask()
        await all_end(readers)
    assert refusals == {(503, "engine_down")}
    verdict = judge(history)
    assert verdict.holds, verdict


PROMPTS = (
    *("The market", "The train", "Late in autumn", "On the hill"),
    *("The sun", "The dog", "A rabbit", "In winter"),
)
MAX_TOKENS = 70
"""In so many tokens these prompts meet no near tie: each choice leads by at least 0.02, and what
llama.cpp computes beside it, or at once, changes that by up to 0.012."""


async def open_prompts(
    server: RunningServer, history: History, truths: dict[str, Truth]
) -> list[Reader]:
    """Open a greedy stream of the built-in model for each prompt."""
    readers = []
    for prompt, truth in truths.items():
        reader = Reader(server.address, history)
        await reader.open(truth, prompt=prompt, temperature=0, max_tokens=MAX_TOKENS)
        readers.append(reader)
    return readers


async def undisturbed(server: RunningServer, prompts: tuple[str, ...]) -> dict[str, Truth]:
    """Return the built-in model's undisturbed answers to these prompts."""
    history = History()
    readers = await open_prompts(server, history, dict.fromkeys(prompts, Truth("", "", 0)))
    truths = {}
    for prompt, reader in zip(prompts, readers, strict=True):
        end = await reader.read_through()
        entries = history.streams[reader.stream].entries
        text = "".join(entry.text for entry in entries if isinstance(entry, Got))
        truths[prompt] = Truth(text, end.reason, end.completion_tokens)
    return truths


async def test_the_built_in_model_says_after_a_death_what_it_would_have_said() -> None:
    """Only prompts count whose answer is the same alone and in company: if two tokens are almost
    equally likely, llama.cpp's choice depends on what else it computes at the time."""
    history = History()
    async with asyncio.timeout(PATIENCE_S):
        with serve(slots=4) as server:
            alone: dict[str, Truth] = {}
            for prompt in PROMPTS:
                alone |= await undisturbed(server, (prompt,))
            together = await undisturbed(server, PROMPTS)
            truths = {each: alone[each] for each in PROMPTS if alone[each] == together[each]}
            assert len(truths) >= 4
            for num_events in (2, 40):
                readers = await open_prompts(server, history, truths)
                await readers[0].got(num_events)
                assert signal_engine(server, signal.SIGKILL)
                await asyncio.gather(*(reader.read_through() for reader in readers))
                await until_readiness(server.address, 200)
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["streams"] == 2 * len(truths)
