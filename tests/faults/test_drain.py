"""SIGTERM during streams: each stream gets a terminal event, and the server ends in time."""

import asyncio
import contextlib
import signal
import time
from dataclasses import replace

import pytest

from tests.faults.checker import judge
from tests.faults.history import History, numbered
from tests.faults.processes import processes_of, still_there, until_readiness
from tests.faults.reading import Reader, RefusedError, fresh_word
from tests.support.servers import serve

DRAIN_S = 5.0
INTERVAL_S = 0.02
LENGTH = 250
"""Tokens of an answer that is not over before its reader has come for the third time."""
PATIENCE_S = 60.0


async def test_streams_end_by_themselves_or_are_told_of_the_shutdown() -> None:
    history = History()
    with serve(
        engine="mock",
        mock_interval=INTERVAL_S,
        drain_timeout=DRAIN_S,
        engine_arg=["numbered=true", "length=100000"],
    ) as server:
        pids = [process.pid for process in processes_of(server)]
        async with asyncio.timeout(PATIENCE_S):
            readers = []
            for each in range(40):
                reader = Reader(server.address, history)
                max_tokens = 40 if each % 2 else 1000
                truth = numbered(fresh_word(), length=100_000, max_tokens=max_tokens)
                truth = replace(truth, may_fail=max_tokens == 1000)
                await reader.open(truth, resumable=each % 4 < 2, max_tokens=max_tokens)
                readers.append(reader)
            await asyncio.gather(*(reader.got(0) for reader in readers))
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            await until_readiness(server.address, 503)
            assert time.monotonic() - began < DRAIN_S
            with pytest.raises(RefusedError) as refused:
                await Reader(server.address, history).open(numbered("late", length=1, max_tokens=1))
            assert (refused.value.status, refused.value.code) == (503, "draining")
            late = Reader(server.address, history)
            await late.attach(readers[0].stream)  # running streams can still be read
            ends = await asyncio.gather(*(reader.closed() for reader in (*readers, late)))
            assert set(ends) == {"whole"}
        returncode = await asyncio.to_thread(server.process.wait, PATIENCE_S)
        took = time.monotonic() - began
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.endings == {"length": 20, "error server_shutdown": 20}
    assert returncode == 0
    assert DRAIN_S <= took < 3 * DRAIN_S  # the long streams would last 20 s
    assert still_there(pids) == []


async def test_readers_come_and_go_while_the_server_drains_and_miss_nothing() -> None:
    history = History()
    with serve(
        engine="mock", mock_interval=INTERVAL_S, engine_arg=["numbered=true", f"length={LENGTH}"]
    ) as server:
        async with asyncio.timeout(PATIENCE_S):
            readers = [Reader(server.address, history) for _ in range(20)]
            for reader in readers:
                await reader.open(
                    numbered(fresh_word(), length=LENGTH, max_tokens=999), max_tokens=999
                )
            server.signal(signal.SIGTERM)
            await until_readiness(server.address, 503)

            async def come_and_go(reader: Reader) -> None:
                with contextlib.suppress(ConnectionError):
                    for _ in range(3):
                        await reader.got(reader.cursor + 1)
                        if reader.ended is None:
                            reader.leave("RST")
                            await reader.attach()

            await asyncio.gather(*map(come_and_go, readers))  # at once: an answer takes 5 s
            await asyncio.gather(*(reader.read_through() for reader in readers))
        assert await asyncio.to_thread(server.process.wait, PATIENCE_S) == 0
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.endings == {"stop": 20}
