"""A request that never ends is refused early, and delays nobody meanwhile.

Regression: the time that the parser took for a trailer grew with the square of its length. One
trailer of 20 MB stopped the server for half a minute.
"""

import asyncio
import contextlib
import time

import pytest

from tests.support.wire import Wire
from tests.wire.case import BODY, chunked, get, post
from tests.wire.ends import PATIENT, End

CHUNKED = b"Transfer-Encoding: chunked"
LAST_CHUNK = chunked(BODY)[:-2]
NUM_BYTES = 16_000_000
PIECE = 100_000
PATIENCE_S = 15.0
ANSWER_WITHIN_S = 10.0  # milliseconds, if the machine is not busy; the trailer took 19 s

# How each begins, and what it goes on with for ever.
ENDLESS = {
    "a method": (b"", b"A"),
    "blank lines": (b"", b"\r\n"),
    "a target": (b"GET /", b"x"),
    "a version": (b"GET /health HTTP/1.1", b"1"),
    "a name": (get()[:-2], b"x"),
    "a value": (get()[:-2] + b"Accept: ", b"x"),
    "blanks before a value": (get()[:-2] + b"Accept: ", b" "),
    "headers": (get()[:-2], b"X: y\r\n"),
    "a length": (post()[: -len(BODY) - 2] + b"Content-Length: ", b"0"),
    "a chunk's size": (post(CHUNKED, body=b""), b"0"),
    "an extension": (post(CHUNKED, body=b"1;a="), b"x"),
    "a quoted extension": (post(CHUNKED, body=b'1;a="'), b"x"),
    "small chunks": (post(CHUNKED, body=b""), b"10\r\n" + b" " * 16 + b"\r\n"),
    "chunks with extensions": (post(CHUNKED, body=b""), b"10;a=b\r\n" + b" " * 16 + b"\r\n"),
    "a trailer's name": (post(CHUNKED, body=LAST_CHUNK), b"x"),
    "a trailer's value": (post(CHUNKED, body=LAST_CHUNK + b"X: "), b"x"),
    "trailers": (post(CHUNKED, body=LAST_CHUNK), b"X: y\r\n"),
    "trailers of a GET": (get(CHUNKED, body=b"0\r\n"), b"X: y\r\n"),
    "a trailer's value in a POST of nothing": (
        post(CHUNKED, body=b"0\r\nX: ", target=b"/nope"),
        b"x",
    ),
}


# Granian skips the zeros before a size without a limit but that of the body's time. It hands over
# each chunk by itself, so with small chunks it takes long to come to the limit.
NOT_CLOSED_BY_GRANIAN = {"a chunk's size", "small chunks", "chunks with extensions"}


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    return PATIENT


async def pour(wire: Wire, unit: bytes) -> None:
    """Send a unit over and over, until the server closes the connection or it was too much."""
    piece = unit * (PIECE // len(unit))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(NUM_BYTES // len(piece)):
                if wire.is_closed:
                    return
                wire.send(piece)
                await wire.drain()


async def slowest_answer(end: End, while_running: asyncio.Task[None]) -> float:
    """Ask for something else all the time; return the longest wait in seconds."""
    longest = 0.0
    async with end.connect() as wire:
        while not while_running.done():
            began = time.monotonic()
            assert (await wire.send(get()).answer()).status == 200
            longest = max(longest, time.monotonic() - began)
    return longest


@pytest.mark.parametrize("kind", ENDLESS)
async def test_what_does_not_end_is_refused_and_delays_nobody(end: End, kind: str) -> None:
    beginning, unit = ENDLESS[kind]
    async with end.connect() as wire:
        pouring = asyncio.create_task(pour(wire.send(beginning), unit))
        assert await slowest_answer(end, pouring) < ANSWER_WITHIN_S
        if end.is_own or kind not in NOT_CLOSED_BY_GRANIAN:
            await wire.until_closed(within=PATIENCE_S)
