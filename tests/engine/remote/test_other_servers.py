"""SGLang and Ollama as upstreams: how their versions differ, and what only they say."""

import pytest

from penstock.engine.remote.engine import Remote
from penstock.request import Message, Sampling
from tests.engine.remote.cuts import after
from tests.support.fake_upstream import END, HEAD, Exchange, FakeUpstream, event, fakes
from tests.support.remote import ask, remote, text_from

PROMPT = 3
CHAT = {"prompt": None, "messages": (Message("user", "one two three"),)}
BEGUN = (Message("user", "one two"), Message("assistant", "three"))


def level_of(engine: Remote) -> str:
    return engine.info.upstreams[0].level


@pytest.mark.parametrize("fields", [{}, CHAT], ids=["prompt", "chat"])
async def test_an_answer_goes_on_with_the_next_token_at_another_sglang(
    fields: dict[str, object],
) -> None:
    one, two = FakeUpstream("sglang"), FakeUpstream("sglang")
    async with fakes(one, two), remote(one, two) as engine:
        # One look at each. After a failure another one follows, if the answer takes so long.
        assert one.looks.count("/model_info") == two.looks.count("/model_info") == 1
        one.faults = two.faults = [after(4, "reset")]
        sampling = Sampling(0.0, top_k=0)
        sink = await ask(engine, "a", 20, sampling=sampling, **fields).end()
        assert level_of(engine) == "ids"
    assert sink.text() == text_from(PROMPT, 20)
    assert sink.token_ids == list(range(PROMPT, PROMPT + 20))
    assert sink.completion_tokens == sink.num_tokens == 20
    assert [len(each.body["prompt"]) for each in one.asked + two.asked] in ([3, 7], [7, 3])
    assert all(each.body["top_k"] == -1 for each in one.asked + two.asked)


@pytest.mark.parametrize(
    ("kind", "parser", "level"),
    [("sglang", None, "ids"), ("sglang", "qwen3", "text"), ("old sglang", None, "text")],
)
async def test_only_an_sglang_that_renders_turns_and_keeps_its_reasoning_gets_ids(
    kind: str, parser: str | None, level: str
) -> None:
    one = FakeUpstream(kind)
    one.reasoning_parser = parser
    async with fakes(one), remote(one) as engine:
        assert engine.info.upstreams[0].kind == "sglang"
        assert level_of(engine) == level
        sink = await ask(engine, "a", 5, **CHAT).end()
    assert sink.text() == text_from(PROMPT, 5)
    assert (
        one.asked[0].path
        == {
            "ids": "/v1/completions",
            "text": "/v1/chat/completions",
        }[level]
    )


async def test_a_begun_turn_goes_on_at_an_sglang() -> None:
    one = FakeUpstream("sglang")
    async with fakes(one), remote(one) as engine:
        fields = {"prompt": None, "messages": BEGUN, "continue_last_message": True}
        sink = await ask(engine, "a", 5, **fields).end()
    assert sink.failure is None
    assert sink.text() == text_from(PROMPT, 5)


async def test_an_sglang_checks_the_token_ids_of_a_client_before_it_works_on_them() -> None:
    one = FakeUpstream("sglang")
    async with fakes(one), remote(one) as engine:
        await ask(engine, "texts", 5).end()
        await ask(engine, "ids", 5, prompt=None, prompt_ids=(7, 99_999, 3)).end()
    texts, ids = (each.body for each in one.asked)
    assert "logit_bias" not in texts
    assert ids["logit_bias"] == {"99999": 0.0}


async def test_a_full_queue_of_sglang_is_no_death_of_the_request() -> None:
    full, other = FakeUpstream("sglang"), FakeUpstream("sglang")

    async def refuse(exchange: Exchange) -> None:
        error = {"object": "error", "message": "secret", "type": "SERVICE_UNAVAILABLE"}
        await exchange.send(HEAD, event({"error": {**error, "code": 503}}), END)

    async with fakes(full, other), remote(full, other) as engine:
        full.faults, other.faults = [refuse] * 3, [refuse] * 3
        sink = await ask(engine, "a", 10).end()
    assert sink.failure is None
    assert sink.text() == text_from(PROMPT, 10)
    assert len(full.asked + other.asked) >= 4, "more refusals than deaths a request may cause"


async def test_ollama_s_usage_of_zeros_counts_nothing() -> None:
    one = FakeUpstream("ollama")
    async with fakes(one), remote(one) as engine:
        assert engine.info.upstreams[0].kind == "ollama"
        sink = await ask(engine, "a", 10, prompt="one two three ").end()
    assert sink.text() == text_from(PROMPT, 10)
    assert sink.num_tokens == sink.completion_tokens == 10
    assert sink.late_prompt_tokens == PROMPT


async def test_an_answer_to_a_prompt_does_not_go_on_at_an_ollama() -> None:
    one, two = FakeUpstream("ollama"), FakeUpstream("ollama")
    async with fakes(one, two), remote(one, two) as engine:
        one.faults = two.faults = [after(4, "reset")]
        sink = await ask(engine, "a", 10, prompt="one two three ").end()
    assert sink.text() == text_from(PROMPT, 4)
    assert sink.failure is not None
    assert sink.failure[0] == "engine_died"
    assert len(one.asked + two.asked) == 1
