"""Whatever an upstream sends, the answer is right or an error, and the log names the upstream."""

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from penstock.errors import PROBLEMS
from tests.support.fake_upstream import END, HEAD, Exchange, FakeUpstream, chunk, event, fakes
from tests.support.remote import FIRST, ask, remote, text_from

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


def says(
    status: str, body: bytes = b'{"error":{"message":"secret-of-the-upstream"}}'
) -> Callable[..., Any]:
    """Return an answer with this status, and a key, a time and an address that nobody may use."""
    more = (b"Retry-After: Wed, 21 Oct 2099 07:28:00 GMT", b"Location: http://127.0.0.1:1/")
    length = b"Content-Length: %d" % len(body)
    return sends(head(JSON, length, *more, status=status.encode()), body)


def body(*lines: bytes) -> Callable[[Exchange], Awaitable[None]]:
    return sends(HEAD, *map(chunk, lines), END)


def begins(*rest: bytes) -> Callable[[Exchange], Awaitable[None]]:
    """Return a fault that sends two right tokens, and then something else."""

    async def fault(exchange: Exchange) -> None:
        await exchange.tokens(2)
        await exchange.send(*map(chunk, rest), END)

    return fault


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
    "too many tokens": answers(choice(token_ids=[3] * 21)),
    "too much text": answers({"choices": [{"index": 0, "text": "x" * 900_000, "token_ids": [3]}]}),
    "no end": answers(),
    "usage backwards": answers(
        {"choices": [], "usage": {"prompt_tokens": -3, "completion_tokens": -5}}
    ),
    "unknown finish": answers({"choices": [{"index": 0, "text": "", "finish_reason": SECRET}]}),
    "error event": answers({"error": {"message": SECRET}}),
    "another protocol": sends(
        head(b"Upgrade: websocket", b"Connection: Upgrade", status=b"101 Switching Protocols")
    ),
    "no content": sends(head(b"Content-Length: 0", status=b"204 No Content")),
    "not modified": sends(head(status=b"304 Not Modified")),
    "bare LF": sends(head(EVENTS).replace(b"\r\n", b"\n")),
    "two ends": sends(head(EVENTS, b"Content-Length: 5", b"Transfer-Encoding: chunked"), END),
    "two lengths": sends(head(EVENTS, b"Content-Length: 5", b"Content-Length: 6")),
    "negative length": sends(head(EVENTS, b"Content-Length: -5")),
    "NUL in the head": sends(head(EVENTS, b"X-A: \0")),
    "folded header": sends(head(EVENTS, b"X-A: b\r\n c")),
    "negative chunk": sends(HEAD, b"-5\r\n"),
    "huge chunk": sends(HEAD, b"f" * 17 + b"\r\n"),
    "compressed chunks": sends(
        head(EVENTS, b"Transfer-Encoding: gzip, chunked"), chunk(gzip.compress(b"data: {}")), END
    ),
    "whole answer": sends(head(JSON, b"Content-Length: 23"), b'{"choices":[{"text":1}]'),
    "error with 200": says("200 OK"),
    "bare CR": body(b'data: {"choices": []}\r\rdata: {"choices": []}\r\r'),
    "several lines of data": body(b'data: {"choices":\ndata: []}\n\n'),
    "half a character": body(b'data: {"choices": [{"text": "\\ud83d"}]}\n\n'),
    "not a number": body(b'data: {"choices": [{"logprobs": {"token_logprobs": [NaN]}}]}\n\n'),
    "half counts": answers({"choices": [], "usage": {"prompt_tokens": 3.5}}),
    "huge counts": answers({"choices": [], "usage": {"prompt_tokens": 10**400}}),
    "[DONE] too early": begins(b"data: [DONE]\n\n"),
    "error as text": begins(
        b'data: {"error": "secret-of-the-upstream", "error_type": "overloaded"}\n\n'
    ),
    "error in mid-answer": begins(
        b'data: {"error": {"code": 400, "message": "secret-of-the-upstream"}}\n\n'
    ),
    "error without its object": begins(b'data: {"object": "error", "code": 500}\n\n'),
    "error as a field": begins(b'error: {"code": 500}\n\n'),
    "error as an event": begins(b'event: error\ndata: {"message": "secret-of-the-upstream"}\n\n'),
    **{
        f"status {status}": says(f"{status} Oh")
        for status in (401, 403, 404, 405, 408, 418, 429, 431, 500, 501, 502, 503, 999)
    },
    "two responses": sends(head(EVENTS, b"Content-Length: 0"), head(b"Content-Length: 0")),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_upstream_harms_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    hostile, good = FakeUpstream(), FakeUpstream()
    hostile.weight = FIRST
    async with fakes(hostile, good), remote(hostile, good) as engine:
        hostile.always = HOSTILE[name]
        for n in range(4):
            sink = await ask(engine, f"{n}", 10, prompt=f"w{n} two three").end()
            assert sink.failure is None
            assert sink.text() == text_from(3, 10)
            assert sink.completion_tokens == 10
    assert hostile.asked, "the hostile upstream was asked"
    warnings = (each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)
    assert any(hostile.url in each for each in warnings)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nX-A: ", HEAD], ids=["head", "chunk"])
async def test_an_upstream_that_sends_byte_by_byte_and_nothing_whole_is_silent(
    begin: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def drip(exchange: Exchange) -> None:
        await exchange.send(begin)
        while True:
            await exchange.send(b"0")
            await asyncio.sleep(0.02)

    hostile, good = FakeUpstream(), FakeUpstream()
    hostile.weight = FIRST
    async with fakes(hostile, good), remote(hostile, good, silence=2.0) as engine:
        hostile.always = drip
        sink = await ask(engine, "a", 10).end()
    assert (sink.failure, sink.text()) == (None, text_from(3, 10))
    assert f"the upstream {hostile.url} is left out: it has been silent" in caplog.text


def reports(**logprobs: Any) -> Callable[[Exchange], Awaitable[None]]:
    """Return a fault that sends a token with these log probabilities."""
    return answers(choice(token_ids=[3], logprobs=logprobs))


def lists(token: Any = "3 ", value: Any = -0.5, top: Any = None) -> dict[str, Any]:
    return {"tokens": [token], "token_logprobs": [value], "top_logprobs": [top]}


HOSTILE_LOGPROBS = {
    "no object": answers(choice(token_ids=[3], logprobs=SECRET)),
    "no list": reports(tokens=SECRET),
    "a number as a token": reports(**lists(token=5)),
    "no number": reports(**lists(value=SECRET)),
    "null": reports(**lists(value=None)),
    "above 0": reports(**lists(value=0.5)),
    "a likely token above 0": reports(**lists(top={SECRET: 1e30})),
    "lists of two lengths": reports(**{**lists(), "token_logprobs": [-0.5, -0.5]}),
    "too many": reports(tokens=["3 "] * 5, token_logprobs=[-0.5] * 5),
    "a huge token": reports(**lists(token="x" * 100_000)),
    "bytes that are none": reports(content=[{"token": SECRET, "logprob": -0.5, "bytes": [300]}]),
    "none for a later token": answers(
        choice(token_ids=[3], logprobs=lists(token=f"{SECRET} ")), choice(token_ids=[4])
    ),
}


@pytest.mark.parametrize("name", HOSTILE_LOGPROBS)
async def test_wrong_log_probabilities_are_an_error_that_names_the_upstream(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    hostile, good = FakeUpstream(), FakeUpstream()
    hostile.weight = FIRST
    async with fakes(hostile, good), remote(hostile, good) as engine:
        hostile.always = HOSTILE_LOGPROBS[name]
        sink = await ask(engine, "a", 10, top_logprobs=2).end()
    assert sink.failure is None
    assert sink.text().replace(f"{SECRET} ", "3 ") == text_from(3, 10)
    assert len(sink.logprobs) == 10
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
