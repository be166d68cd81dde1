"""Many readers of one stream get the same events, and a stalled reader harms no other."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults.checker import Rules, judge
from tests.faults.history import HeldBytes, History, numbered
from tests.faults.processes import ESTABLISHED, server_sockets
from tests.faults.proxy import bandwidth, proxied
from tests.faults.reading import Reader, fresh_word
from tests.support.servers import RunningServer, serve

STALL_TIMEOUT_S = 2.0
LENGTH = 400
LETTERS = 3000
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    arguments = ["numbered=true", f"length={LENGTH}"]
    with serve(
        engine="mock", mock_interval=0.005, stall_timeout=STALL_TIMEOUT_S, engine_arg=arguments
    ) as running:
        yield running


async def test_all_readers_of_a_stream_get_the_same_bytes_whenever_they_come(
    server: RunningServer,
) -> None:
    history = History()
    async with asyncio.timeout(PATIENCE_S):
        first = Reader(server.address, history)
        await first.open(numbered(fresh_word(), length=LENGTH, max_tokens=1000), max_tokens=1000)
        readers = [first]
        for each in range(20):
            reader = Reader(server.address, history)
            if each % 3 == 0:
                await first.got(each)
                reader.cursor = each
            await reader.attach(first.stream)
            readers.append(reader)
        await asyncio.gather(*(reader.closed() for reader in readers))
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["readers"] == 21


async def test_a_stalled_reader_is_bounded_and_dropped_and_a_slow_one_is_not(
    server: RunningServer,
) -> None:
    history = History()
    word = fresh_word(LETTERS)
    async with (
        asyncio.timeout(PATIENCE_S),
        proxied(server.address, down=[bandwidth(500_000)]) as slow_network,
    ):
        good = [Reader(server.address, history) for _ in range(5)]
        await good[0].open(numbered(word, length=LENGTH, max_tokens=1000), max_tokens=1000)
        for reader in good[1:]:
            await reader.attach(good[0].stream)
        slow = Reader(slow_network.address, history)
        await slow.attach(good[0].stream)
        stalled = Reader(server.address, history)
        stalled.receive_buffer = 4096
        await stalled.attach(good[0].stream)
        await stalled.got(0)
        stalled.stop_reading()
        port = stalled.port
        most = 0

        async def dropped() -> None:
            """Wait until the server has closed the connection: no event tells of it."""
            nonlocal most
            while (held := server_sockets(server.port)[port]).state == ESTABLISHED:
                most = max(most, held.unsent)
                await asyncio.sleep(0.02)

        await asyncio.gather(dropped(), *(reader.closed() for reader in good))
        history.add(good[0].stream, HeldBytes(0, stalled.name, most))
        assert good[0].cursor == LENGTH
        stalled.read_on()
        assert await stalled.closed() == "cut"
        assert stalled.ended is None
        await stalled.read_through()
        assert await slow.closed() == "whole"
    verdict = judge(history, Rules(bytes_per_reader=256 * 1024))
    assert verdict.holds, verdict
    assert most > 0
    assert verdict.counts["cut"] == 1
