"""Requests sent ahead on one connection are answered one by one and in order (RFC 9112, 9.3.2)."""

import pytest

from tests.support.wire import Wire
from tests.wire.case import BODY, chunked, get, length, post
from tests.wire.ends import PATIENT, End

CHUNKED = b"Transfer-Encoding: chunked"
STREAM = b'{"prompt":"a","max_tokens":3}'


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    return PATIENT


def numbered(number: int, sent: bytes) -> bytes:
    """Give a request an id of its own, which its answer will have too."""
    return sent.replace(b"X-Request-ID: first", b"X-Request-ID: r%d" % number)


KINDS = {
    "GET": (get(), 200),
    "HEAD": (get(method=b"HEAD"), 200),
    "a length": (post(length(BODY)), 200),
    "chunks": (post(CHUNKED, body=chunked(BODY)), 200),
    "a stream": (post(length(STREAM), body=STREAM), 200),
    "an unknown route": (get(target=b"/nope"), 404),
    "a body that nobody reads": (post(length(BODY), target=b"/health"), 405),
    "bad JSON": (post(b"Content-Length: 1", body=b"{"), 400),
    "another's host": (get(target=b"/v1/models", host=b"evil.example"), 403),
}


async def read(wire: Wire, count: int, methods: list[bytes]) -> list[tuple[str, int]]:
    """Read answers; return their ids and statuses."""
    found = []
    for number in range(count):
        answer = await wire.answer(to_head=methods[number] == b"HEAD")
        found.append((answer.request_id, answer.status))
    return found


@pytest.mark.parametrize("count", [2, 3, 7, 50, 1000])
async def test_as_many_answers_come_as_requests_were_sent(end: End, count: int) -> None:
    sent = [numbered(n, get()) for n in range(count)]
    async with end.connect() as wire:
        wire.send(b"".join(sent))
        found = await read(wire, count, [b"GET"] * count)
        assert found == [(f"r{n}", 200) for n in range(count)]
        assert wire.received == b""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_among_others_takes_its_own_bytes_only(end: End, kind: str) -> None:
    """Each kind stands before, between and after every other kind."""
    sent, methods = b"", []
    expected: list[tuple[str, int]] = []
    for other in KINDS:
        for each in (kind, other):
            one, status = KINDS[each]
            sent += numbered(len(expected), one)
            expected.append((f"r{len(expected)}", status))
            methods.append(one.split(b" ")[0])
    async with end.connect() as wire:
        wire.send(sent)
        assert await read(wire, len(expected), methods) == expected
        assert (await wire.send(numbered(99, get())).answer()).request_id == "r99"
        assert wire.received == b""


async def test_a_slow_answer_is_not_overtaken(end: End) -> None:
    slow = post(length(STREAM), body=STREAM)
    async with end.connect() as wire:
        wire.send(b"".join(numbered(n, get() if n % 2 else slow) for n in range(6)))
        found = await read(wire, 6, [b"GET"] * 6)
    assert found == [(f"r{n}", 200) for n in range(6)]


BROKEN = {
    "a request line": b"G@T /health HTTP/1.1\r\n\r\n",
    "a header": get(b"Accept : x"),
    "a length": post(b"Content-Length: -1"),
    "a coding": post(b"Transfer-Encoding: xchunked", body=chunked(BODY)),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_request_ends_the_connection_after_the_answers_before_it(
    end: End, broken: str
) -> None:
    async with end.connect() as wire:
        before = numbered(0, get()) + numbered(1, post(length(BODY)))
        wire.send(before + BROKEN[broken] + numbered(2, get()) * 5)
        assert await read(wire, 2, [b"GET", b"POST"]) == [("r0", 200), ("r1", 200)]
        answer = await wire.answer()
        assert answer.status in (400, 501)
        assert answer.closes
        assert await wire.until_closed() == b""


async def test_nothing_after_a_wish_to_close_is_answered(end: End) -> None:
    async with end.connect() as wire:
        wire.send(numbered(0, get()) + numbered(1, get(b"Connection: close")) + get() * 5)
        assert (await wire.answer()).request_id == "r0"
        last = await wire.answer()
        assert last.request_id == "r1"
        assert last.closes
        assert await wire.until_closed() == b""
