"""A client that never reads is dropped in time, and the server holds little for it.

This holds for streams, for whole answers, and for answers to requests that were sent ahead.
"""

import asyncio
import contextlib
import time

import psutil
import pytest

from tests.support.wire import Wire
from tests.wire.case import get, length, post
from tests.wire.ends import End

STALL_TIMEOUT_S = 1.0
OWN_WITHIN_S = STALL_TIMEOUT_S + 9.0
# Granian itself has no such limit. The kernel gives up ten seconds later (see web/listener.py).
GRANIAN_WITHIN_S = STALL_TIMEOUT_S + 16.0
MAX_HELD_BYTES = 64 * 1024 * 1024
BIG_WORDS = "".join(" " + letter * 2000 for letter in "abcdefgh")


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    """Tokens of 2 KB, as fast as the engine can."""
    return {
        "stall_timeout": STALL_TIMEOUT_S,
        "engine_arg": ["length=100000", "context_length=200000", f"text={BIG_WORDS}"],
    }


def asking(*, stream: str, max_tokens: int = 4000) -> bytes:
    body = b'{"prompt":"a","max_tokens":%d,"stream":%b}' % (max_tokens, stream.encode())
    return post(length(body), body=body)


WAYS = {
    "a stream": asking(stream="true"),
    "a whole answer": asking(stream="false"),
    "sent ahead": get(target=b"/openapi.json") * 500,
    "streams sent ahead": asking(stream="true", max_tokens=200) * 20,
}


def held(end: End) -> int:
    """Return the bytes of memory that the server takes."""
    return int(psutil.Process(end.server.pid).memory_info().rss)


def peers(end: End) -> set[int]:
    """Return the ports of the clients whose connections the server has open."""
    found = psutil.Process(end.server.pid).net_connections("tcp")
    return {each.raddr.port for each in found if each.status not in ("CLOSE", "LISTEN")}


def port_of(wire: Wire) -> int:
    return int(wire.transport.get_extra_info("sockname")[1])


async def test_clients_that_never_read_are_dropped_in_time_and_held_little(end: End) -> None:
    before = held(end)
    most = 0
    async with contextlib.AsyncExitStack() as stack:
        ways = {}
        for way in (*WAYS, *["sent ahead"] * 9):
            wire = await stack.enter_async_context(end.connect(receive_buffer=4096))
            wire.transport.pause_reading()
            wire.send(WAYS[way])
            ways[port_of(wire)] = way
        began = time.monotonic()
        open_after: dict[str, float] = {}
        while ways.keys() & peers(end) and time.monotonic() - began < GRANIAN_WITHIN_S + 1:
            most = max(most, held(end) - before)
            open_after |= {
                ways[port]: time.monotonic() - began for port in ways.keys() & peers(end)
            }
            async with end.connect() as other:
                assert (await other.send(get()).answer()).status == 200
            await asyncio.sleep(0.05)
    within = OWN_WITHIN_S if end.is_own else GRANIAN_WITHIN_S
    assert {way: seconds for way, seconds in open_after.items() if seconds > within} == {}
    assert most < MAX_HELD_BYTES
