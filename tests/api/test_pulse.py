import asyncio

from penstock.api.pulse import Pulse, Sending
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.streams import Streams
from tests.stream.scripted import ScriptedEngine

HEARTBEAT_S, STALL_S = 15.0, 30.0


def reader() -> Reader:
    return Reader(Streams(ScriptedEngine()).open(Request(id="a", max_tokens=5, prompt="x")))


async def test_a_silent_reader_is_woken_in_time_and_not_before() -> None:
    pulse = Pulse(HEARTBEAT_S, STALL_S)
    silent = reader()
    sending = Sending(silent)
    pulse.add(sending)
    take = asyncio.create_task(silent.take())
    await asyncio.sleep(0)
    pulse.beat(sending.since + HEARTBEAT_S - 1)
    await asyncio.sleep(0)
    assert not take.done()
    pulse.beat(sending.since + HEARTBEAT_S + 1)
    async with asyncio.timeout(1):
        assert await take == []
    assert not sending.is_stalled


async def test_a_send_that_waits_too_long_ends_its_task_and_not_before() -> None:
    pulse = Pulse(HEARTBEAT_S, STALL_S)
    began = asyncio.Event()
    found: list[Sending] = []

    async def respond() -> None:
        sending = Sending(reader())
        found.append(sending)
        pulse.add(sending)
        sending.begin()
        began.set()
        await asyncio.Event().wait()  # a client that does not read

    task = asyncio.create_task(respond())
    await began.wait()
    pulse.beat(found[0].since + STALL_S - 1)
    await asyncio.sleep(0)
    assert not task.done()
    pulse.beat(found[0].since + STALL_S + 1)
    await asyncio.wait({task}, timeout=1)
    assert task.cancelled()
    assert found[0].is_stalled
    assert pulse.num_stalled == 1


async def test_a_send_that_was_taken_is_not_stalled_however_long_ago() -> None:
    pulse = Pulse(HEARTBEAT_S, STALL_S)
    sending = Sending(reader())
    pulse.add(sending)
    sending.begin()
    sending.end()
    pulse.beat(sending.since + 10 * STALL_S)
    assert not sending.is_stalled
    pulse.remove(sending)
    assert len(pulse) == 0
