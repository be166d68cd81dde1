"""Upstreams of several models behind one engine: `Request.model` chooses among them."""

import asyncio

from penstock.engine.remote.engine import Remote
from tests.engine.remote.cuts import after
from tests.support.fake_upstream import FakeUpstream, fakes
from tests.support.remote import FIRST, ask, logged, remote, text_from

PROMPT = 3


async def test_a_request_goes_only_to_upstreams_of_its_model() -> None:
    small, large = FakeUpstream(model="small"), FakeUpstream("openai", model="large", context=500)
    large.weight = FIRST
    async with fakes(small, large), remote(small, large) as engine:
        info = engine.info
        assert (info.id, [each.id for each in info.models]) == ("small", ["large"])
        assert info.of("large").context_length == 500
        assert info.slots == 2 * info.of("large").slots
        assert "return_token_ids" in info.supports
        assert "return_token_ids" not in info.of("large").supports
        for model, upstream in (("small", small), ("large", large), ("", small)):
            upstream.asked.clear()
            sinks = [ask(engine, f"{model} {n}", 5, model=model) for n in range(9)]
            for sink in sinks:
                assert (await sink.end()).text() == text_from(PROMPT, 5)
            assert len(upstream.asked) == 9
        assert {each.body["model"] for each in large.asked} == {"large"}


async def test_each_model_has_its_own_context() -> None:
    small, large = FakeUpstream(model="small", context=5), FakeUpstream(model="large")
    async with fakes(small, large), remote(small, large) as engine:
        refused = await ask(engine, "a", 5, prompt="word " * 9, model="small").end()
        answered = await ask(engine, "b", 5, prompt="word " * 9, model="large").end()
    assert refused.failure is not None
    assert refused.failure[0] == "prompt_too_long"
    assert "5 tokens" in refused.failure[1]
    assert answered.text() == text_from(9, 5)


async def test_an_answer_goes_on_only_at_upstreams_of_its_model() -> None:
    several = [FakeUpstream(model=model) for model in ("a", "a", "b")]
    async with fakes(*several), remote(*several) as engine:
        for each in several[:2]:
            each.faults = [after(4, "reset")]
        several[2].weight = FIRST
        sink = await ask(engine, "x", 20, model="a").end()
    assert sink.text() == text_from(PROMPT, 20)
    assert sorted(len(each.asked) for each in several[:2]) == [1, 2]
    assert several[2].asked == []


async def test_one_model_waits_for_its_upstream_while_the_others_go_on() -> None:
    small, large = FakeUpstream(model="small"), FakeUpstream(model="large")
    async with fakes(small, large), remote(small, large, slots=8) as engine:
        await large.close()
        asked = [ask(engine, f"large {n}", 5, model="large") for n in range(20)]
        # Half of the slots are its part: so many wait, the others are told to come again. Which of
        # them wait is chance: each finds out for itself that nobody is there.
        ends = asyncio.as_completed([sink.end() for sink in asked])
        refused = [await next(ends) for _ in range(16)]
        assert {sink.failure and sink.failure[0] for sink in refused} == {"engine_down"}
        sinks = [ask(engine, f"small {n}", 5, model="small") for n in range(20)]
        for sink in sinks:
            assert (await sink.end()).text() == text_from(PROMPT, 5)
        assert sum(sink.ended for sink in asked) == 16
        await large.open()
        for end in ends:
            assert (await end).text() == text_from(PROMPT, 5)


async def test_a_model_that_comes_after_the_start_is_told_and_served() -> None:
    early, late = FakeUpstream(model="early"), FakeUpstream(model="late")
    async with fakes(early, late):
        await late.close()
        engine = Remote(urls=[early.url, late.url])
        told = asyncio.Event()
        engine.on_info = lambda info: told.set()
        info = await engine.start()
        assert (info.id, info.models) == ("early", ())
        waiting = ask(engine, "a", 5, model="late")
        await late.open()
        async with asyncio.timeout(20):
            await told.wait()
        assert [each.id for each in engine.info.models] == ["late"]
        assert (await waiting.end()).text() == text_from(PROMPT, 5)
        assert len(late.asked) == 1
        await engine.stop()


async def test_a_request_for_a_model_that_does_not_come_ends_in_time() -> None:
    one = FakeUpstream()
    async with fakes(one), remote(one, patience=0.2) as engine:
        sink = await ask(engine, "a", 5, model="gone").end()
    assert sink.failure is not None
    assert sink.failure[0] == "model_not_found"
    assert one.asked == []


async def test_an_upstream_that_names_one_model_after_the_other_is_left_out() -> None:
    one, two = FakeUpstream(model="a"), FakeUpstream(model="b")
    async with fakes(one, two), remote(one, two, interval=0.01) as engine:
        with logged("it serves another model than at the start") as said:
            two.model = "c"
            async with asyncio.timeout(20):
                await said.wait()
        assert [each.id for each in engine.info.models] == ["b"]
        assert (await ask(engine, "x", 5, model="a").end()).text() == text_from(PROMPT, 5)


async def test_one_server_may_serve_several_models() -> None:
    one = FakeUpstream("ollama", model="a:1b")
    one.other_models = ["b:7b"]
    async with fakes(one):
        tables = [{"url": one.url, "model": model} for model in ("a:1b", "b:7b")]
        engine = Remote(upstreams=tables)
        info = await engine.start()
        assert (info.id, [each.id for each in info.models]) == ("a:1b", ["b:7b"])
        for model in ("b:7b", "a:1b"):
            await ask(engine, model, 3, model=model).end()
            assert one.asked[-1].body["model"] == model
        await engine.stop()


async def test_a_name_for_all_makes_one_model_and_a_table_may_name_another() -> None:
    several = [FakeUpstream(model=f"file-{n}") for n in range(3)]
    async with fakes(*several):
        tables = [{"url": each.url} for each in several]
        tables[2]["serves"] = "other"
        engine = Remote(name="chat", upstreams=tables)
        info = await engine.start()
        assert (info.id, [each.id for each in info.models]) == ("chat", ["other"])
        assert len(info.upstreams) == 2
        sinks = [ask(engine, f"{n}", 3, prompt=f"{n} b c", model="chat") for n in range(30)]
        for sink in sinks:
            await sink.end()
        await ask(engine, "other", 3, model="other").end()
        await engine.stop()
    assert all(several[n].asked for n in range(3))
    assert len(several[2].asked) == 1
