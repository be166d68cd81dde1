"""Clients leave: the engine stops at once, and the server keeps nothing of them."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.faults.checker import Rules, judge
from tests.faults.history import Abort, History, Told, numbered
from tests.faults.processes import held_by, settled
from tests.faults.reading import Reader, ask_how_it_ended, cancel, fresh_word
from tests.faults.reporting import Reports
from tests.support.servers import RunningServer, serve

PATIENCE_S = 60.0
LINGER_S = 2.0
FEW_TOKENS = 200
"""Four seconds' worth, for a busy machine. A stream that nobody ended would make 1000."""
WAYS = ("FIN", "RST", "delete")


@pytest.fixture(scope="module")
def reporting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Reports]]:
    """A server whose engine reports its acts and makes a token every 20 ms without end."""
    path = tmp_path_factory.mktemp("reports") / "engine"
    reports = Reports(path)
    with serve(
        module="tests.faults.reporting",
        engine="mock",
        mock_interval=0.02,
        linger=LINGER_S,
        engine_arg=["numbered=true", "length=100000", f'report="{path}"'],
    ) as server:
        yield server, reports
    reports.close()


async def reported(reports: Reports, history: History, streams: set[str]) -> None:
    """Wait until the engine has been told to stop each of these streams."""
    left = set(streams)
    async with asyncio.timeout(PATIENCE_S):
        while left:
            for stream, entry in reports.read():
                history.add(stream, entry)
                if entry.what == "cancelled":
                    left.discard(stream)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
async def test_hardly_a_token_is_made_after_the_client_has_gone(
    reporting: tuple[RunningServer, Reports], way: str
) -> None:
    server, reports = reporting
    history = History()
    before = held_by(server)
    async with asyncio.timeout(PATIENCE_S):
        readers = [Reader(server.address, history) for _ in range(20)]
        for reader in readers:
            truth = numbered(fresh_word(), length=100_000, max_tokens=1000)
            await reader.open(truth, resumable=False, max_tokens=1000)
        await asyncio.gather(*(reader.got(1) for reader in readers))
        for reader in readers:
            if way == "delete":
                await cancel(server.address, history, reader.stream)
            else:
                reader.leave("RST" if way == "RST" else "FIN")
        await reported(reports, history, {reader.stream for reader in readers})
        for reader in readers:
            reason = await ask_how_it_ended(server.address, history, reader.stream)
            assert reason == "cancelled"
            reader.leave()
    history.hold("before", before)
    history.hold("after", await settled(server, before))
    verdict = judge(history, Rules(tokens_after_abort=FEW_TOKENS))
    assert verdict.holds, verdict
    assert verdict.endings == {"cancelled": 20}


async def test_a_resumable_stream_lingers_and_is_then_cancelled(
    reporting: tuple[RunningServer, Reports],
) -> None:
    server, reports = reporting
    history = History()
    async with asyncio.timeout(PATIENCE_S):
        reader = Reader(server.address, history)
        truth = numbered(fresh_word(), length=100_000, max_tokens=1000)
        await reader.open(truth, max_tokens=1000)
        await reader.got(0)
        reader.leave()
        await reader.attach()  # within the linger time
        await reader.got(reader.cursor + 3)
        left_at = time.monotonic()
        reader.leave("RST")
        history.add(reader.stream, Abort(left_at + LINGER_S, "linger"))
        await reported(reports, history, {reader.stream})
        assert time.monotonic() - left_at >= LINGER_S
        end = await reader.read_through()
        history.add(reader.stream, Told(time.monotonic(), end.reason))
    verdict = judge(history, Rules(tokens_after_abort=FEW_TOKENS))
    assert verdict.holds, verdict
    assert verdict.endings == {"cancelled": 1}
