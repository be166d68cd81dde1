"""A client that has sent its request and closes its side still reads the answer.

RFC 9112 asks for no answer then, but every other server gives one. TLS has no half-close in
asyncio, so these tests concern plain HTTP only.
"""

import asyncio
import json

import pytest

from tests.support.answers import Answer
from tests.wire.case import BODY, answers_in, chunked, get, length, post
from tests.wire.ends import End
from tests.wire.watching import seconds_until_cancelled

pytestmark = pytest.mark.parametrize("end", ["own"], indirect=True)

COUNT = 20
NOTICED_WITHIN_S = 10.0  # milliseconds, if the machine is not busy


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    return {"mock_interval": 0.01, "engine_arg": ["length=1000"]}


def generation(**fields: object) -> bytes:
    body = json.dumps({"prompt": "a", "max_tokens": COUNT, **fields}).encode()
    return post(length(body), body=body)


async def last_words(end: End, sent: bytes) -> list[Answer]:
    """Send bytes and FIN; return all answers."""
    async with end.connect() as wire:
        wire.send(sent).half_close()
        found = []
        try:
            while True:
                found.append(await wire.answer())
        except EOFError:
            return found


@pytest.mark.parametrize("path", [b"/health", b"/health/ready", b"/v1/models", b"/", b"/metrics"])
async def test_an_answer_without_a_generation(end: End, path: bytes) -> None:
    (answer,) = await last_words(end, get(target=path))
    assert answer.status == 200
    assert answer.body


async def test_a_problem(end: End) -> None:
    assert [answer.status for answer in await last_words(end, get(target=b"/nope"))] == [404]


async def test_a_whole_generation(end: End) -> None:
    (answer,) = await last_words(end, generation(stream=False))
    whole = json.loads(answer.body)
    assert (answer.status, whole["finish_reason"]) == (200, "length")
    assert whole["usage"]["completion_tokens"] == COUNT


async def test_a_whole_generation_whose_body_came_in_chunks(end: End) -> None:
    sent = post(b"Transfer-Encoding: chunked", body=chunked(BODY))
    assert [answer.status for answer in await last_words(end, sent)] == [200]


@pytest.mark.parametrize("is_resumable", [False, True])
async def test_a_streamed_generation(end: End, is_resumable: bool) -> None:
    (answer,) = await last_words(end, generation(resumable=is_resumable))
    assert answer.body.count(b'"finished":false') == COUNT
    assert b'"finish_reason":"length"' in answer.body


async def test_requests_that_were_sent_ahead(end: End) -> None:
    sent = get() + generation(stream=False) + get(target=b"/nope") + generation() + get()
    statuses = [answer.status for answer in await last_words(end, sent)]
    assert statuses == [200, 200, 404, 200, 200]


@pytest.mark.parametrize("ahead", [2, 3, 10])
async def test_requests_that_were_sent_ahead_wherever_the_fin_comes(end: End, ahead: int) -> None:
    """Regression: a FIN between two answers dropped the requests that had not been parsed."""
    counts = await asyncio.gather(*(_num_answers(end, ahead, turns) for turns in range(100)))
    assert set(counts) == {ahead}


async def _num_answers(end: End, ahead: int, turns: int) -> int:
    """Send GETs and then, so many turns of the event loop later, FIN; count the answers."""
    async with end.connect() as wire:
        wire.send(get() * ahead)
        for _ in range(turns):
            await asyncio.sleep(0)
        await wire.half_close().until_closed()
        return len(list(answers_in(wire.received)))


async def test_half_a_request_after_a_whole_one(end: End) -> None:
    first, *rest = await last_words(end, get() + generation()[:-5])
    assert first.status == 200
    assert [answer.status for answer in rest] in ([], [400])


async def test_a_client_that_leaves_after_it_closed_its_side_is_noticed(end: End) -> None:
    """A FIN may be a half-close or the end of the client: the next bytes of the answer show it."""
    body = b'{"prompt":"a","max_tokens":1000}'
    sent = post(length(body), body=body).replace(b"first", b"left-later")
    async with end.connect() as wire:
        await wire.send(sent).half_close().until(b"data: ")
        wire.reset()
    assert await seconds_until_cancelled(end, "left-later") < NOTICED_WITHIN_S
