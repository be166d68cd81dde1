"""Upstreams that refuse: a route that is not there, a wrong key, what they do not take."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from penstock.engine.remote.health import MAX_PAUSE_S
from penstock.engine.remote.http import seconds_of
from penstock.request import Message
from tests.support.fake_upstream import END, HEAD, Exchange, FakeUpstream, event, fakes
from tests.support.remote import FIRST, ask, remote, text_from

CHAT: dict[str, Any] = {"prompt": None, "messages": (Message("user", "one two three"),)}


def chats_only(status: str) -> Callable[[Exchange], Awaitable[None]]:
    async def fault(exchange: Exchange) -> None:
        if exchange.path == "/v1/completions":
            await exchange.whole({"error": {"message": "This is a chat model."}}, status)
        else:
            await exchange.answer()

    return fault


@pytest.mark.parametrize("status", ["404 Not Found", "405 Not Allowed", "501 Not Implemented"])
async def test_a_prompt_does_no_harm_to_a_server_for_chats_only(
    status: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = FakeUpstream("openai")
    async with fakes(one), remote(one) as engine:
        one.always = chats_only(status)
        for _ in range(3):
            refused = await ask(engine, "a", 5).end()
            assert refused.failure is not None
            assert refused.failure[0] == "unsupported_field"
            answered = await ask(engine, "b", 5, **CHAT).end()
            assert (answered.failure, answered.text()) == (None, text_from(3, 5))
    assert [each.path for each in one.asked].count("/v1/completions") == 1
    assert "is left out" not in caplog.text


async def test_prompts_go_to_the_upstreams_that_answer_them() -> None:
    chats, both = FakeUpstream("openai"), FakeUpstream("openai")
    chats.weight = FIRST
    async with fakes(chats, both), remote(chats, both) as engine:
        chats.always = chats_only("404 Not Found")
        for n in range(4):
            sink = await ask(engine, f"{n}", 5).end()
            assert (sink.failure, sink.text()) == (None, text_from(3, 5))
    assert (len(chats.asked), len(both.asked)) == (1, 4)


async def test_an_upstream_whose_model_is_gone_gets_no_request_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = FakeUpstream("openai"), FakeUpstream("openai")
    one.weight = FIRST

    async def gone(exchange: Exchange) -> None:
        one.model = "another"
        await exchange.whole({"error": {"message": "no such model"}}, "404 Not Found")

    async with fakes(one, two), remote(one, two, interval=100.0) as engine:
        one.faults = [gone]
        for n in range(3):
            sink = await ask(engine, f"{n}", 5).end()
            assert (sink.failure, sink.text()) == (None, text_from(3, 5))
    assert (len(one.asked), len(two.asked)) == (1, 3)
    assert f"the upstream {one.url} is left out" in caplog.text


@pytest.mark.parametrize("status", ["401 Unauthorized", "429 Too Many Requests"])
async def test_a_request_that_no_upstream_lets_in_ends_when_its_patience_does(status: str) -> None:
    one, two = FakeUpstream("openai"), FakeUpstream("openai")

    async def refuse(exchange: Exchange) -> None:
        await exchange.whole({"error": {"message": "no"}}, status)

    async with fakes(one, two), remote(one, two, patience=1.0) as engine:
        one.always = two.always = refuse
        sink = await ask(engine, "a", 5).end(20)
    assert sink.failure is not None
    assert sink.failure[0] == "engine_died"
    # The pauses grow: it did not knock again and again.
    assert 2 <= len(one.asked + two.asked) <= 20


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0),
        (b" 0 ", 0.0),
        (b"9" * 400, math.inf),
        (b"1.5", 0.0),
        (b"-5", 0.0),
        (b"soon", 0.0),
        (b"\xb2", 0.0),  # a digit that is no number
        (b"Fri, 01 Jan 1999 00:00:00 GMT", 0.0),
        (b"Fri, 99 Jan 9999999 00:00:00 GMT", 0.0),
    ],
)
def test_a_pause_that_an_upstream_asks_for_is_read_or_is_none(value: bytes, seconds: float) -> None:
    assert seconds_of(value) == seconds


def test_a_pause_may_be_a_time() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    assert 30 < seconds_of(in_a_minute.encode()) <= 60


async def test_an_upstream_without_room_is_left_alone_for_as_long_as_it_asks() -> None:
    one, two = FakeUpstream("openai"), FakeUpstream("openai")

    async def refuse(exchange: Exchange) -> None:
        head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 600\r\nContent-Length: 0\r\n\r\n"
        await exchange.send(head)

    one.weight = FIRST  # it gets the request first
    async with fakes(one, two), remote(one, two) as engine:
        one.faults = [refuse]
        asked_at = asyncio.get_running_loop().time()
        sink = await ask(engine, "a", 5).end()
        assert (sink.failure, sink.text()) == (None, text_from(3, 5))
        state = engine._pool.upstreams[0].health
    assert state.state == "sick"
    assert state.look_at >= asked_at + MAX_PAUSE_S


async def test_a_request_that_is_refused_in_an_event_harms_no_upstream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = FakeUpstream(), FakeUpstream()

    async def refuse(exchange: Exchange) -> None:
        error = {"error": {"code": 400, "message": "such is the request"}}
        await exchange.send(HEAD, event(error), END)

    async with fakes(one, two), remote(one, two) as engine:
        one.always = two.always = refuse
        sink = await ask(engine, "a", 5).end()
    assert sink.failure is not None
    assert sink.failure[0] == "engine_refused"
    assert "such" not in sink.failure[1]
    assert len(one.asked + two.asked) == 1
    assert "is left out" not in caplog.text
