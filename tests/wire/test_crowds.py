"""Hundreds of connections that ask nothing, or ask slowly, delay nobody."""

import asyncio
import contextlib
import time

import pytest

from tests.support.wire import Wire
from tests.wire.case import BODY, get, length, post
from tests.wire.ends import PATIENT, End

NUM_IDLE = 500
ANSWER_WITHIN_S = 10.0  # milliseconds, if the machine is not busy

BEGINNINGS = (b"", b"GET /hea", get()[:-2], post(length(BODY))[:-5])


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    """The idle connections stay as long as the test needs them."""
    return PATIENT


async def seconds_of(wire: Wire, sent: bytes) -> float:
    began = time.monotonic()
    assert (await wire.send(sent).answer()).status == 200
    return time.monotonic() - began


async def test_others_are_answered_while_five_hundred_connections_wait(end: End) -> None:
    async with contextlib.AsyncExitStack() as stack:
        idle = await asyncio.gather(
            *(stack.enter_async_context(end.connect()) for _ in range(NUM_IDLE))
        )
        for number, wire in enumerate(idle):
            wire.send(BEGINNINGS[number % len(BEGINNINGS)])
        async with end.connect() as quick:
            for sent in (get(), post(length(BODY)), get(target=b"/v1/models")) * 5:
                assert await seconds_of(quick, sent) < ANSWER_WITHIN_S
        assert not any(wire.is_closed for wire in idle)
        # Those that go on are answered as well.
        for number, wire in enumerate(idle):
            beginning = BEGINNINGS[number % len(BEGINNINGS)]
            whole = post(length(BODY)) if beginning.startswith(b"POST") else get()
            wire.send(whole[len(beginning) :])
        answers = await asyncio.gather(*(wire.answer() for wire in idle))
        assert [answer.status for answer in answers] == [200] * NUM_IDLE
