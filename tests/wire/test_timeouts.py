"""Heads and bodies that do not come, or come in drops: 408, and the connection really closes.

The server gives a head and a body three seconds each (see `short` and `ends`). All connections of a
test wait at the same time.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.support.wire import Wire
from tests.wire.case import BODY, answers_in, get, length, post
from tests.wire.ends import BODY_TIMEOUT_S, End
from tests.wire.short import HEAD_TIMEOUT_S

NUM_CONNECTIONS = 10
NUM_OVER_TLS = 3  # handshakes take long, and the server counts their time
SLACK_S = 20.0  # a machine may be busy, and a timer may be coarse
DROP_EVERY_S = 0.1
CHUNKED = b"Transfer-Encoding: chunked"

Way = Callable[[Wire], Awaitable[None]]


@dataclass
class Found:
    """What became of a connection: the answers' statuses, and its end, if it ended."""

    statuses: list[int]
    is_closed: bool
    seconds: float


async def drip(wire: Wire, sent: bytes) -> None:
    """Send a byte now and then until the server closes the connection."""
    for byte in sent:
        wire.send(bytes([byte]))
        with contextlib.suppress(TimeoutError):
            await wire.until_closed(within=DROP_EVERY_S)
            return


async def go(end: End, way: Way) -> Found:
    """Let a connection go this way."""
    began = time.monotonic()  # the server may accept the connection before we hear of it
    async with end.connect() as wire:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * HEAD_TIMEOUT_S + SLACK_S):
                await way(wire)
                await wire.until_closed()
        seconds = time.monotonic() - began
        answers = list(answers_in(wire.received))
        assert all(answer.closes for answer in answers if answer.status == 408)
        return Found([answer.status for answer in answers], wire.is_closed, seconds)


async def all_ways(end: End) -> dict[str, list[Found]]:
    """Let several connections go each way, all at once."""
    number = NUM_CONNECTIONS if end.is_own else NUM_OVER_TLS
    ways = [each for each in WAYS for _ in range(number)]
    every = await asyncio.gather(*(go(end, WAYS[way]) for way in ways))
    return {
        way: [found for other, found in zip(ways, every, strict=True) if other == way]
        for way in WAYS
    }


@pytest.fixture(scope="module")
def found(end: End) -> dict[str, list[Found]]:
    """What became of the connections that went each way."""
    return asyncio.run(all_ways(end))


async def silent(wire: Wire) -> None:
    pass


async def half_a_line(wire: Wire) -> None:
    wire.send(b"GET /hea")


async def half_a_head(wire: Wire) -> None:
    wire.send(get()[:-2])


async def dripping_head(wire: Wire) -> None:
    await drip(wire, get(b"Accept: " + b"x" * 1000))


async def dripping_blank_lines(wire: Wire) -> None:
    await drip(wire, b"\r\n" * 500)


async def dripping_headers(wire: Wire) -> None:
    wire.send(get()[:-2])
    while not wire.is_closed:
        wire.send(b"X: y\r\n")
        with contextlib.suppress(TimeoutError):
            await wire.until_closed(within=DROP_EVERY_S)


async def half_a_second_head(wire: Wire) -> None:
    assert (await wire.send(get()).answer()).status == 200
    wire.send(get()[:-2])


HEADS = {
    way.__name__.replace("_", " "): way
    for way in (
        *(silent, half_a_line, half_a_head, half_a_second_head),
        *(dripping_head, dripping_blank_lines, dripping_headers),
    )
}


async def no_body(wire: Wire) -> None:
    wire.send(post(length(BODY), body=b""))


async def half_a_body(wire: Wire) -> None:
    wire.send(post(length(BODY))[:-5])


async def no_chunk(wire: Wire) -> None:
    wire.send(post(CHUNKED, body=b""))


async def half_a_chunk(wire: Wire) -> None:
    wire.send(post(CHUNKED, body=b"2c\r\n{"))


async def no_last_chunk(wire: Wire) -> None:
    wire.send(post(CHUNKED, body=b"%x\r\n%b\r\n" % (len(BODY), BODY)))


async def dripping_body(wire: Wire) -> None:
    wire.send(post(b"Content-Length: 1000", body=b""))
    await drip(wire, b" " * 500)


async def dripping_chunks(wire: Wire) -> None:
    wire.send(post(CHUNKED, body=b""))
    await drip(wire, b"1\r\n \r\n" * 500)


async def dripping_trailers(wire: Wire) -> None:
    wire.send(post(CHUNKED, body=b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)))
    await drip(wire, b"X: y\r\n" * 500)


BODIES = {
    way.__name__.replace("_", " "): way
    for way in (
        *(no_body, half_a_body, no_chunk, half_a_chunk, no_last_chunk),
        *(dripping_body, dripping_chunks, dripping_trailers),
    )
}


async def unread_body(wire: Wire) -> None:
    wire.send(post(b"Content-Length: 1000000", body=b"", target=b"/nope"))
    await drip(wire, b" " * 500)


WAYS = {**HEADS, **BODIES, "unread body": unread_body}


@pytest.mark.parametrize("way", HEADS)
def test_a_head_that_does_not_come_whole_ends_its_connection(
    end: End, found: dict[str, list[Found]], way: str
) -> None:
    # Granian does not close a silent connection. The server gives it time for TLS's handshake, too.
    within = (1 if end.is_own else 2) * HEAD_TIMEOUT_S + SLACK_S
    for each in found[way]:
        # No answer is due to a client that asked nothing.
        assert each.statuses in ([408], [])
        assert each.is_closed
        assert each.seconds < within
        if end.is_own:  # over TLS, the time of the handshake counts, too
            assert each.seconds > HEAD_TIMEOUT_S * 0.9


@pytest.mark.parametrize("way", BODIES)
def test_a_body_that_does_not_come_whole_gets_408_and_ends_its_connection(
    end: End, found: dict[str, list[Found]], way: str
) -> None:
    for each in found[way]:
        assert each.statuses == [408]
        if end.is_own:  # faults.md, C1: Granian keeps some of them open
            assert each.is_closed
            assert BODY_TIMEOUT_S * 0.9 < each.seconds < BODY_TIMEOUT_S + SLACK_S


def test_a_body_that_nobody_reads_has_a_limit_too(end: End, found: dict[str, list[Found]]) -> None:
    """The answer came long ago, and its client goes on sending."""
    for each in found["unread body"]:
        assert each.statuses == [404]
        if end.is_own:
            assert each.is_closed
