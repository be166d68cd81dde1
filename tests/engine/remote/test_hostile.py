"""Whatever an upstream sends, the answer is right or an error, and the log names the upstream."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from penstock.errors import PROBLEMS
from tests.support.fake_upstream import END, HEAD, Exchange, FakeUpstream, chunk, event, fakes
from tests.support.remote import ask, remote, text_from

SECRET = "secret-of-the-upstream"
PIECE = b"x" * 65536


def sends(*pieces: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def fault(exchange: Exchange) -> None:
        await exchange.send(*pieces)

    return fault


def forever(*begin: bytes, piece: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def fault(exchange: Exchange) -> None:
        await exchange.send(*begin)
        while True:  # ends when the other side closes the connection
            await exchange.send(piece)

    return fault


def answers(*events: Any) -> Callable[[Exchange], Awaitable[None]]:
    return sends(HEAD, *map(event, events), chunk(b"data: [DONE]\n\n"), END)


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": f"{SECRET} ", **fields}]}


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"", b""))


JSON = b"Content-Type: application/json"
EVENTS = b"Content-Type: text/event-stream"

HOSTILE = {
    "no http": sends(b"SSH-2.0-OpenSSH_9.7\r\n"),
    "nothing": sends(b""),
    "html": sends(head(b"Content-Type: text/html", b"Content-Length: 6"), b"<html>"),
    "json": sends(head(JSON, b"Content-Length: 2"), b"{}"),
    "redirect": sends(
        head(b"Location: http://127.0.0.1:1/", b"Content-Length: 0", status=b"302 Found")
    ),
    "endless head": forever(b"HTTP/1.1 200 OK\r\n", piece=b"X-A: " + PIECE[:8000] + b"\r\n"),
    "endless header": forever(b"HTTP/1.1 200 OK\r\nX-A: ", piece=PIECE),
    "endless line": forever(HEAD, chunk(b"data: "), piece=chunk(PIECE)),
    "endless chunk size": forever(HEAD, piece=b"0" * 65536),
    "endless comments": forever(HEAD, piece=chunk(b": " + PIECE + b"\n")),
    "endless error": forever(
        head(JSON, b"Transfer-Encoding: chunked", status=b"500 Oh"), piece=chunk(PIECE)
    ),
    "compressed": sends(head(EVENTS, b"Content-Encoding: gzip", b"Content-Length: 0")),
    "not json": sends(HEAD, chunk(b"data: {nonsense\n\n"), END),
    "not utf-8": sends(HEAD, chunk(b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n'), END),
    "deep json": sends(HEAD, chunk(b"data: " + b"[" * 100_000 + b"\n\n"), END),
    "wrong types": answers({"choices": [{"index": 0, "text": 5}]}),
    "a list": answers([1, 2]),
    "wrong index": answers(choice(index=1, token_ids=[3])),
    "negative token": answers(choice(token_ids=[-1])),
    "huge token": answers(choice(token_ids=[2**40])),
    "too many tokens": answers(choice(token_ids=[3] * 11)),
    "too much text": answers({"choices": [{"index": 0, "text": "x" * 900_000, "token_ids": [3]}]}),
    "no end": answers(),
    "usage backwards": answers(
        {"choices": [], "usage": {"prompt_tokens": -3, "completion_tokens": -5}}
    ),
    "unknown finish": answers({"choices": [{"index": 0, "text": "", "finish_reason": SECRET}]}),
    "error event": answers({"error": {"message": SECRET}}),
    "two responses": sends(head(EVENTS, b"Content-Length: 0"), head(b"Content-Length: 0")),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_upstream_harms_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    hostile, good = FakeUpstream(), FakeUpstream()
    hostile.weight = 1000.0  # almost every request comes to it first
    async with fakes(hostile, good), remote(hostile, good) as engine:
        hostile.always = HOSTILE[name]
        for n in range(4):
            sink = await ask(engine, f"{n}", 10, prompt=f"w{n} two three").end()
            assert sink.failure is None
            assert sink.text() == text_from(3, 10)
            assert sink.completion_tokens == 10
    assert hostile.asked, "the hostile upstream was asked"
    assert f"the upstream {hostile.url} is left out" in caplog.text
    assert SECRET not in caplog.text


async def test_a_hostile_upstream_alone_gives_an_error_without_its_words() -> None:
    one = FakeUpstream()
    async with fakes(one), remote(one) as engine:
        one.always = answers({"error": {"message": SECRET}})
        sink = await ask(engine, "a", 10).end()
    assert sink.failure is not None
    code, message = sink.failure
    assert code in PROBLEMS
    assert SECRET not in message
    assert str(one.port) not in message


async def test_wrong_usage_does_not_change_the_count_of_tokens_with_ids() -> None:
    one = FakeUpstream()
    async with fakes(one), remote(one) as engine:
        one.always = answers(
            *({"choices": [{"index": 0, "text": f"{n} ", "token_ids": [n]}]} for n in (3, 4)),
            {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}},
        )
        sink = await ask(engine, "a", 10).end()
    assert sink.text() == "3 4 "
    assert (sink.completion_tokens, sink.num_tokens, sink.cached_tokens) == (2, 2, 0)


async def test_many_streams_beside_a_hostile_one_get_only_their_own_text() -> None:
    one, two = FakeUpstream(), FakeUpstream()
    faults = list(HOSTILE.values())
    async with fakes(one, two), remote(one, two, slots=64) as engine:
        one.faults = faults
        sinks = [ask(engine, f"{n}", 20, prompt="w " * (n + 1)) for n in range(60)]
        for n, sink in enumerate(sinks):
            await sink.end(30)
            assert sink.text() == text_from(n + 1, 20), sink.failure
