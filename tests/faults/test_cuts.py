"""Connections are cut at any byte, in any way: a resume brings everything missed."""

import asyncio
import contextlib
import random
from collections.abc import Iterator

import pytest

from tests.faults.checker import judge
from tests.faults.history import History, numbered
from tests.faults.processes import held_by, settled
from tests.faults.proxy import CLOSES, Faults, Proxy, cut, latency, none, proxied, slices, sometimes
from tests.faults.reading import Reader, RefusedError, fresh_word
from tests.support.servers import RunningServer, serve

LENGTH = 60
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    arguments = ["numbered=true", f"length={LENGTH}"]
    with serve(engine="mock", mock_interval=0.001, engine_arg=arguments) as running:
        yield running


def cut_anywhere(chance: random.Random) -> Faults:
    return Faults(
        down=[
            *sometimes(chance, 0.2, slices(chance.randrange(1, 50))),
            *sometimes(chance, 0.2, latency(0.001, 0.001, chance)),
            cut(chance.randrange(1, 3000), chance.choice(CLOSES)),
        ]
    )


async def test_streams_cut_at_random_lose_nothing_and_get_nothing_twice(
    server: RunningServer,
) -> None:
    history = History()
    before = held_by(server)

    async def read(proxy: Proxy, max_tokens: int) -> None:
        reader = Reader(proxy.address, history)
        truth = numbered(fresh_word(), length=LENGTH, max_tokens=max_tokens)
        while not reader.stream:
            with contextlib.suppress(OSError):  # cut before the reader knew its stream
                await reader.open(truth, max_tokens=max_tokens)
        await reader.read_through()

    async with asyncio.timeout(PATIENCE_S), Proxy(server.address, cut_anywhere, seed=1) as proxy:
        await asyncio.gather(*(read(proxy, max_tokens) for max_tokens in range(20, 100)))
    history.hold("before", before)
    history.hold("after", await settled(server, before))
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["cut"] > 100


async def test_a_stream_that_has_ended_is_resumed_from_every_byte_of_its_response(
    server: RunningServer,
) -> None:
    history = History()
    truth = numbered(fresh_word(), length=LENGTH, max_tokens=3)
    async with asyncio.timeout(PATIENCE_S), Proxy(server.address) as proxy:
        first = Reader(server.address, history)
        await first.open(truth, max_tokens=3)
        await first.read_through()
        for num_bytes in range(2000):
            reader = Reader(proxy.address, history)
            fault = cut(num_bytes)
            proxy.faults_of = lambda _, fault=fault: Faults(down=[fault])  # type: ignore[misc] # mypy ignores the defaults of lambdas
            with contextlib.suppress(OSError):  # cut within the head
                await reader.attach(first.stream)
                if await reader.closed() == "whole":
                    break
            proxy.faults_of = none
            if reader.ended is None:
                await reader.attach(first.stream)
                await reader.read_through()
        else:
            raise AssertionError("the response has no end")
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["readers"] == num_bytes + 2
    assert num_bytes > 500


async def test_a_byte_at_a_time_arrives_as_it_was_sent(server: RunningServer) -> None:
    history = History()
    one_by_one = [slices(1)]
    async with proxied(server.address, up=one_by_one, down=one_by_one) as proxy:
        reader = Reader(proxy.address, history)
        await reader.open(numbered(fresh_word(), length=LENGTH, max_tokens=20), max_tokens=20)
        await reader.read_through()
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["events"] == 21


async def test_every_cursor_to_resume_from_is_answered(server: RunningServer) -> None:
    history = History()
    truth = numbered(fresh_word(), length=LENGTH, max_tokens=5)
    first = Reader(server.address, history)
    await first.open(truth, max_tokens=5)
    await first.read_through()
    for after in range(-1, 5):
        for by in ("header", "query"):
            reader = Reader(server.address, history)
            reader.cursor = after
            await reader.attach(first.stream, by="header" if by == "header" else "query")
            await reader.read_through()
    for after, status, code in (
        (5, 204, ""),
        (6, 400, "bad_event_id"),
        (2**63, 400, "bad_event_id"),
    ):
        reader = Reader(server.address, history)
        reader.cursor = after
        with pytest.raises(RefusedError) as refused:
            await reader.attach(first.stream)
        assert (refused.value.status, refused.value.code) == (status, code)
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["refused"] == 3


async def test_many_readers_resume_at_once_after_an_outage(server: RunningServer) -> None:
    history = History()
    async with asyncio.timeout(PATIENCE_S), Proxy(server.address) as proxy:
        readers = [Reader(proxy.address, history) for _ in range(50)]
        for reader in readers:
            await reader.open(
                numbered(fresh_word(), length=LENGTH, max_tokens=LENGTH), max_tokens=LENGTH
            )
        await proxy.down()
        await proxy.drop()
        await asyncio.gather(*(reader.closed() for reader in readers))
        for reader in readers:
            with pytest.raises(ConnectionRefusedError):
                await reader.attach()
        await proxy.up()
        await asyncio.gather(*(reader.read_through() for reader in readers))
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.endings == {"stop": 50}
