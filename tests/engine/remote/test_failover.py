"""An answer outlives the upstreams that work on it: nothing is lost, repeated or changed."""

import asyncio

import pytest

from penstock.engine.remote.answering import MAX_DEATHS_IN_A_ROW
from penstock.engine.remote.engine import Remote
from penstock.request import Message
from tests.engine.remote.cuts import CUTS, REFUSALS, after, cut_streams
from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.remote import FIRST, ask, remote, text_from

PROMPT = 3


@pytest.mark.parametrize("end", [*CUTS, *REFUSALS])
async def test_an_answer_goes_on_at_another_upstream(end: str) -> None:
    one, two = FakeUpstream(), FakeUpstream()
    async with fakes(one, two), remote(one, two) as engine:
        one.faults = two.faults = [after(4, end)]  # one fault, wherever the request comes first
        sink = await ask(engine, "a", 20).end()
    assert sink.failure is None
    assert sink.text() == text_from(PROMPT, 20)
    assert sink.token_ids == list(range(PROMPT, PROMPT + 20))
    assert (sink.completion_tokens, sink.num_tokens, sink.reason) == (20, 20, "length")
    assert len(one.asked) == len(two.asked) == 1


async def test_a_hundred_and_twenty_cut_streams_arrive_whole() -> None:
    assert await cut_streams(120) >= 50


async def test_an_upstream_that_hangs_has_failed() -> None:
    one, two = FakeUpstream(), FakeUpstream()

    async def hang(exchange: Exchange) -> None:
        await exchange.tokens(2)
        await exchange.until_gone()

    async with fakes(one, two), remote(one, two, silence=2.0) as engine:
        one.faults = two.faults = [hang]
        sink = await ask(engine, "a", 10).end()
    assert sink.text() == text_from(PROMPT, 10)
    assert len(one.asked + two.asked) == 2


async def test_a_request_cannot_fail_one_upstream_after_the_other() -> None:
    upstreams = [FakeUpstream() for _ in range(4)]

    async def die(exchange: Exchange) -> None:
        if exchange.first == 6:
            exchange.reset()
        else:
            await exchange.answer()

    async with fakes(*upstreams), remote(*upstreams) as engine:
        for each in upstreams:
            each.always = die
        poison = await ask(engine, "poison", 10, prompt="a b c d e f").end()
        honest = await ask(engine, "honest", 10).end()
    assert poison.failure is not None
    assert poison.failure[0] == "engine_died"
    num_tries = sum(each.first == 6 for upstream in upstreams for each in upstream.asked)
    assert num_tries == MAX_DEATHS_IN_A_ROW
    assert honest.text() == text_from(PROMPT, 10)


async def test_a_refusal_is_told_without_the_upstream_s_words() -> None:
    one, two = FakeUpstream(), FakeUpstream()

    async def refuse(exchange: Exchange) -> None:
        await exchange.whole({"error": {"message": "secret", "code": "secret"}}, "400 Bad Request")

    async with fakes(one, two), remote(one, two) as engine:
        one.faults = two.faults = [refuse]
        sink = await ask(engine, "a", 10).end()
        assert sink.failure is not None
        assert sink.failure[0] == "engine_refused"
        assert "secret" not in sink.failure[1]
        assert len(one.asked + two.asked) == 1, "no other upstream is asked"
        assert (await ask(engine, "b", 10).end()).failure is None


async def test_a_cancel_closes_the_connection_at_the_upstream() -> None:
    one = FakeUpstream()
    gone = asyncio.Event()

    async def go_on(exchange: Exchange) -> None:
        await exchange.tokens(2)
        await exchange.until_gone()
        gone.set()

    async with fakes(one), remote(one) as engine:
        one.faults = [go_on]
        sink = ask(engine, "a", 100)
        await sink.until("delta")
        stopped = asyncio.Event()
        engine.cancel("a", stopped.set)
        async with asyncio.timeout(10):
            await gone.wait()
            await stopped.wait()


async def test_an_upstream_with_another_vocabulary_gets_nothing() -> None:
    one, other = FakeUpstream(), FakeUpstream(words=2)
    async with fakes(one, other), remote(one, other) as engine:
        one.always = after(3, "cut")
        sink = await ask(engine, "a", 9).end()
    assert sink.text() == text_from(PROMPT, 9)
    assert len(one.asked) == 3
    assert other.asked == []


CHAT = {"prompt": None, "messages": (Message("user", "one two three"),)}


async def test_texts_go_on_as_the_assistant_s_turn_where_the_upstream_can_continue_it() -> None:
    one, two = FakeUpstream("old sglang"), FakeUpstream("old sglang")
    async with fakes(one, two), remote(one, two) as engine:
        one.faults, two.faults = [after(4, "reset")], [after(4, "reset")]
        sink = await ask(engine, "a", 10, **CHAT).end()
    assert sink.text() == text_from(PROMPT, 10)
    assert sink.completion_tokens == 10
    asked = one.asked + two.asked
    continued = [each.body for each in asked if each.body.get("continue_final_message")]
    assert len(continued) == len(asked) - 1 == 2
    assert all(each["messages"][-1]["role"] == "assistant" for each in continued)


async def test_the_prompt_s_tokens_are_told_once_an_upstream_has_counted_them() -> None:
    one, two = FakeUpstream("openai"), FakeUpstream("openai")
    async with fakes(one, two), remote(one, two) as engine:
        one.faults = two.faults = [after(0, "reset")]
        chat = await ask(engine, "chat", 10, **CHAT).end()
        one.faults = two.faults = [after(4, "reset")]
        cut = await ask(engine, "cut", 10, prompt="one two three ").end()
    assert (chat.text(), chat.prompt_tokens) == (text_from(PROMPT, 10), PROMPT)
    assert chat.calls.index("cached") < chat.calls.index("finish")
    assert chat.calls.count("cached") == 1
    # The second upstream has counted the prompt and a part of the answer together.
    assert (cut.text(), cut.prompt_tokens) == (text_from(PROMPT, 10), 0)


async def test_texts_are_asked_anew_before_any_text_and_end_with_an_error_after_it() -> None:
    one, two = FakeUpstream("openai"), FakeUpstream("openai")
    async with fakes(one, two), remote(one, two) as engine:
        one.faults, two.faults = [after(0, "reset")], []
        before = await ask(engine, "before", 10, **CHAT).end()
        one.always = two.always = after(4, "reset")
        midway = await ask(engine, "midway", 10, **CHAT).end()
    assert before.text() == text_from(PROMPT, 10)
    assert midway.text() == text_from(PROMPT, 4)
    assert midway.failure is not None
    assert midway.failure[0] == "engine_died"


async def test_a_prompt_goes_on_after_its_text_at_any_server() -> None:
    one, two = FakeUpstream("openai"), FakeUpstream("openai")
    async with fakes(one, two), remote(one, two) as engine:
        one.faults, two.faults = [after(4, "reset")], [after(4, "reset")]
        sink = await ask(engine, "a", 10, prompt="one two three ").end()
    assert sink.text() == text_from(PROMPT, 10)


async def test_a_stopped_upstream_that_is_back_gets_requests_again() -> None:
    one = FakeUpstream()
    paused: list[bool] = []
    has_paused = asyncio.Event()

    def note(is_paused: bool) -> None:
        paused.append(is_paused)
        has_paused.set()

    async with fakes(one), remote(one) as engine:
        engine.on_pause = note
        await one.close()
        sink = ask(engine, "a", 10)
        await has_paused.wait()  # the request has found that nobody is there
        await one.open()
        await sink.end()
    assert sink.text() == text_from(PROMPT, 10)
    assert paused == [True, False]


async def test_the_engine_starts_with_its_first_upstream() -> None:
    late = FakeUpstream()
    async with fakes(late):
        await late.close()
        engine = Remote(urls=[late.url])
        starting = asyncio.create_task(engine.start())
        await asyncio.wait({starting}, timeout=0.3)  # several looks find nobody
        assert not starting.done()
        await late.open()
        async with asyncio.timeout(20):
            info = await starting
        assert info.id == "fake"
        sink = await ask(engine, "a", 5).end()
        await engine.stop()
    assert sink.text() == text_from(PROMPT, 5)


async def test_a_draining_penstock_gets_nothing_new() -> None:
    one, draining = FakeUpstream(), FakeUpstream("penstock")
    draining.weight = FIRST
    async with fakes(one, draining), remote(one, draining) as engine:
        sink = await ask(engine, "a", 5).end()
    assert sink.text() == text_from(PROMPT, 5)
    assert draining.asked == []
