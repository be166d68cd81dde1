"""What any upstream knows, such as the tokens of a prompt: a slow upstream holds no request up."""

import asyncio

import pytest

from penstock.engine.remote import questions
from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.remote import FIRST, ask, logged, remote, text_from


async def hang(exchange: Exchange) -> None:
    await exchange.until_gone()


async def test_another_upstream_is_asked_if_one_is_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(questions, "SLOW_S", 0.05)
    cold, warm = FakeUpstream(), FakeUpstream()
    cold.weight = FIRST
    async with fakes(cold, warm), remote(cold, warm, interval=100.0) as engine:
        cold.lies = {"/tokenize": hang}
        sink = await ask(engine, "a", 5).end(20)
        assert (sink.failure, sink.text()) == (None, text_from(3, 5))
        assert engine._pool.upstreams[0].num_requests == 0
    assert len(cold.asked) == 1, "it is slow, and not sick"
    assert "is left out" not in caplog.text


async def test_an_upstream_alone_is_asked_once_however_slow_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(questions, "SLOW_S", 0.01)
    one = FakeUpstream()
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        asked.set()
        await go_on.wait()
        await exchange.whole({"tokens": [0, 1, 2]})

    async with fakes(one), remote(one, interval=100.0) as engine:
        one.lies = {"/tokenize": wait}
        num_looks = len(one.looks)
        sink = ask(engine, "a", 5)
        async with asyncio.timeout(20):
            await asked.wait()
        with pytest.raises(TimeoutError):  # it is asked again within this time, or never
            await sink.end(0.2)
        assert len(one.looks) == num_looks + 1
        go_on.set()
        await sink.end()
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))


async def test_a_second_upstream_that_fails_leaves_the_slow_one_its_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(questions, "SLOW_S", 0.05)
    slow, sick = FakeUpstream(), FakeUpstream()
    slow.weight = FIRST

    async def fail(exchange: Exchange) -> None:
        await exchange.whole({}, "500 Oh")

    async with fakes(slow, sick), remote(slow, sick, interval=100.0) as engine:
        with logged(f"the upstream {sick.url} is left out") as failed:

            async def wait(exchange: Exchange) -> None:
                await failed.wait()
                await exchange.whole({"tokens": [0, 1, 2]})

            slow.lies, sick.lies = {"/tokenize": wait}, {"/tokenize": fail}
            sink = await ask(engine, "a", 5).end(20)
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))
    assert f"the upstream {sick.url} is left out" in caplog.text
    assert slow.url not in caplog.text
