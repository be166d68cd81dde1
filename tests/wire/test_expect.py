"""Expect: 100-continue, from a client that waits before it sends its body (RFC 9110, 10.1.1)."""

import pytest

from tests.wire.case import BODY, MARKER, chunked, get, length, post
from tests.wire.ends import End

EXPECT = b"Expect: 100-continue"
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize("framing", [length(BODY), CHUNKED])
async def test_the_body_is_asked_for_and_read(end: End, framing: bytes) -> None:
    async with end.connect() as wire:
        interim = await wire.send(post(framing, EXPECT, body=b"")).answer()
        assert (interim.status, interim.headers) == (100, [])
        assert wire.received == b""
        wire.send(chunked(BODY) if framing == CHUNKED else BODY)
        assert (await wire.answer()).status == 200
        assert (await wire.send(get()).answer()).status == 200


REFUSED = {
    "an unknown route": (post(length(BODY), EXPECT, body=b"", target=b"/nope"), 404),
    "a wrong method": (get(length(BODY), EXPECT, method=b"PUT"), 405),
    "another's host": (post(length(BODY), EXPECT, body=b"", host=b"evil.example"), 403),
    "a body that is too large": (post(b"Content-Length: 99999999", EXPECT, body=b""), 413),
    "a wrong type": (
        get(b"Content-Type: text/plain", length(BODY), EXPECT, method=b"POST", target=b"/generate"),
        415,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_body_that_will_not_be_read_is_not_asked_for(end: End, case: str) -> None:
    """The server says that it closes. Or else it takes what comes next for the body."""
    sent, status = REFUSED[case]
    async with end.connect() as wire:
        answer = await wire.send(sent).answer()
        assert answer.status == status
        if answer.closes:
            assert await wire.until_closed() == b""
            return
        try:
            answer = await wire.send(BODY + MARKER).answer()
        except EOFError:
            assert not end.is_own, "closed without Connection: close"  # Granian does that
        else:
            assert answer.request_id == "marker"


async def test_a_client_that_waits_for_the_word_in_vain_gets_408(end: End) -> None:
    async with end.connect() as wire:
        wire.send(post(length(BODY), EXPECT, body=b""))
        assert (await wire.answer()).status == 100
        assert (await wire.answer()).status == 408
