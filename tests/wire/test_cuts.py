"""Requests that come in pieces, and requests that end before their end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import pytest

from tests.support.wire import Wire
from tests.wire.case import BODY, INNER, MARKER, answers_in, chunked, get, length, post
from tests.wire.cases.request_lines import NO_SUCH_VERSION, VERSIONS
from tests.wire.ends import PATIENT, End

T = TypeVar("T")
AT_ONCE = 50
CHUNKED = b"Transfer-Encoding: chunked"
REQUESTS = {
    "a GET": get(b"Accept: */*"),
    "a length": post(length(BODY)),
    "chunks": post(CHUNKED, body=chunked(BODY[:9], BODY[9:])),
    "chunks with a trailer": post(CHUNKED, body=chunked(BODY)[:-2] + b"X: y\r\n\r\n"),
}

BAD_VERSIONS = {each.name: each.sent for each in VERSIONS if each.right == NO_SUCH_VERSION}


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    return PATIENT


async def round_trip(end: End) -> None:
    """Return when the server has answered: by then it has read what was sent before."""
    async with end.connect() as wire:
        assert (await wire.send(get()).answer()).status == 200


@contextlib.asynccontextmanager
async def begun(end: End, sent: bytes, cuts: Iterable[int]) -> AsyncIterator[dict[int, Wire]]:
    """For each cut, yield a connection whose server has read the bytes before it."""
    async with contextlib.AsyncExitStack() as stack:
        wires = {cut: await stack.enter_async_context(end.connect()) for cut in cuts}
        for cut, wire in wires.items():
            wire.send(sent[:cut])
        await round_trip(end)
        yield wires


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_in_two_pieces_is_the_same_request(end: End, kind: str) -> None:
    sent = REQUESTS[kind] + MARKER
    cuts = range(1, len(sent))
    for first in range(0, len(cuts), AT_ONCE):
        async with begun(end, sent, cuts[first : first + AT_ONCE]) as wires:
            for cut, wire in wires.items():
                await wire.send(sent[cut:]).until_closed()
                found = [(each.status, each.request_id) for each in answers_in(wire.received)]
                assert found == [(200, "first"), (404, "marker")], cut


@pytest.mark.parametrize("version", BAD_VERSIONS)
async def test_a_version_in_two_pieces_is_refused_as_a_whole_one_is(end: End, version: str) -> None:
    """Regression: RTSP/1.0 was taken for HTTP/1.0 if the line came in two pieces."""
    sent = BAD_VERSIONS[version]
    async with begun(end, sent, range(1, sent.index(b"\r\n") + 2)) as wires:
        for cut, wire in wires.items():
            await wire.send(sent[cut:]).until_closed()
            assert {each.status for each in answers_in(wire.received)} <= {400, 505}, cut


async def test_a_line_of_http_0_9_in_two_pieces_is_refused_at_once(end: End) -> None:
    if not end.is_own:
        pytest.skip("Granian waits for the head's end")
    async with end.connect() as wire:
        wire.send(b"GET /hea")
        await round_trip(end)
        await wire.send(b"lth\r\n").until_closed()
        assert [each.status for each in answers_in(wire.received)] == [400]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_whose_head_begins_in_the_piece_of_the_last_one_s_end_is_read(
    end: End, kind: str
) -> None:
    """Regression: a later piece of a head that had begun behind chunks was taken for its first
    line, and refused: it has no version."""
    start = len(REQUESTS[kind])
    sent = REQUESTS[kind] + MARKER
    async with begun(end, sent, range(start + 1, len(sent), 7)) as wires:
        for later in range(0, len(MARKER), 7):
            for cut, wire in wires.items():
                wire.send(sent[cut + later : cut + later + 7])
            await round_trip(end)
        for cut, wire in wires.items():
            await wire.until_closed()
            found = [(each.status, each.request_id) for each in answers_in(wire.received)]
            assert found == [(200, "first"), (404, "marker")], cut


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_that_comes_byte_by_byte_is_the_same_request(end: End, kind: str) -> None:
    async with end.connect() as wire:
        for byte in REQUESTS[kind] + MARKER:
            wire.send(bytes([byte]))
            await asyncio.sleep(0)
        await wire.until_closed()
        ids = [answer.request_id for answer in answers_in(wire.received)]
    assert ids == ["first", "marker"]


@pytest.mark.parametrize("way", ["FIN", "RST"])
@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_that_ends_too_soon_is_not_taken_for_whole(
    end: End, kind: str, way: str
) -> None:
    """A proxy that is cut in mid-request must not have sent a shorter one."""
    sent = REQUESTS[kind]

    async def cut_short(cut: int) -> list[int]:
        async with end.connect() as wire:
            wire.send(sent[:cut])
            if way == "RST":
                await asyncio.sleep(0)
                wire.reset()
            elif end.is_own:
                wire.half_close()
            else:
                wire.transport.close()  # TLS has no half-close in asyncio
            await wire.until_closed()
            return [answer.status for answer in answers_in(wire.received)]

    found = await gathered(cut_short, range(1, len(sent)))
    assert {cut for cut, statuses in found.items() if statuses not in ([], [400], [408])} == set()
    await round_trip(end)


async def test_a_body_that_ends_too_soon_leaves_no_request_behind(end: End) -> None:
    """What comes on the next connection is not the body of the last one."""
    async with end.connect() as wire:
        wire.send(post(b"Content-Length: %d" % (len(BODY) + len(INNER))))
        await round_trip(end)
        wire.reset()
    async with end.connect() as wire:
        await wire.send(INNER + MARKER).until_closed()
        ids = [answer.request_id for answer in answers_in(wire.received)]
    assert ids == ["inner", "marker"]


async def gathered(act: Callable[[int], Awaitable[T]], cuts: range) -> dict[int, T]:
    """Run `act` for each cut, some at once."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(cut: int) -> T:
        async with free:
            return await act(cut)

    return dict(zip(cuts, await asyncio.gather(*map(one, cuts)), strict=True))
