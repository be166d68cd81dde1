"""Log probabilities of a prompt over upstreams: asked for once, as vLLM can be asked."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from penstock.engine.remote.prompt_logprobs import MAX_ENTRIES, refusal_of_size
from penstock.events import RankedToken
from tests.engine.remote.cuts import after
from tests.support.fake_upstream import Exchange, FakeUpstream, fakes
from tests.support.front import front
from tests.support.openai_wire import COMPLETIONS
from tests.support.remote import FIRST, ask, remote, text_from

SECRET = "zqxj"


def place(token: int, num_top: int) -> tuple[RankedToken, ...]:
    likely = (RankedToken(100 + n, f"{100 + n} ", -float(n), n) for n in range(1, num_top + 1))
    return (RankedToken(token, f"{token} ", -5.0, 5), *likely)


async def test_a_prompt_s_tokens_are_ranked_and_the_answer_is_the_usual_one() -> None:
    one = FakeUpstream()
    async with fakes(one), remote(one) as engine:
        assert "prompt_logprobs" in engine.info.supports
        for num_top in (0, 2):
            sink = await ask(engine, "a", 10, prompt_logprobs=num_top).end()
            first = (RankedToken(0, "0 "),)
            assert sink.prompt == (first, place(1, num_top), place(2, num_top))
            assert (sink.failure, sink.text()) == (None, text_from(3, 10))
            assert sink.completion_tokens == 10
        plain = await ask(engine, "plain", 10).end()
    assert plain.prompt is None
    asked = [each.body.get("prompt_logprobs") for each in one.asked]
    assert asked == [0, None, 2, None, None]
    whole = one.asked[0].body
    assert (whole["prompt"], whole["max_tokens"], "stream" in whole) == ([0, 1, 2], 1, False)


async def test_an_answer_that_goes_on_elsewhere_asks_only_once() -> None:
    one, two = FakeUpstream(), FakeUpstream()
    one.weight = FIRST
    async with fakes(one, two), remote(one, two) as engine:
        one.faults = [Exchange.answer, after(4, "reset")]
        sink = await ask(engine, "a", 10, prompt_logprobs=1, top_logprobs=1).end()
    assert (sink.failure, sink.text()) == (None, text_from(3, 10))
    assert len(sink.logprobs) == 10
    assert sum("prompt_logprobs" in each.body for each in one.asked + two.asked) == 1


@pytest.mark.parametrize("kind", ["sglang", "openai", "ollama"])
async def test_a_server_without_them_refuses_in_a_sentence(kind: Any) -> None:
    one = FakeUpstream(kind)
    async with fakes(one), remote(one) as engine:
        assert "prompt_logprobs" not in engine.info.supports
        sink = await ask(engine, "a", 10, prompt_logprobs=1).end()
    assert sink.failure is not None
    assert sink.failure[0] == "unsupported_field"
    assert sink.failure[1].endswith(" reports no log probabilities of a prompt.")
    assert one.asked == []


def says(*places: Any) -> Callable[[Exchange], Awaitable[None]]:
    """Return a fault that answers with these places."""

    async def answer(exchange: Exchange) -> None:
        await exchange.whole({"choices": [{"prompt_logprobs": list(places)}]})

    return answer


def entry(value: Any = -1.0, **fields: Any) -> dict[str, Any]:
    return {"logprob": value, "rank": 1, "decoded_token": "a", **fields}


GOOD = {"2": entry()}
HOSTILE: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "too few": says(None, {"1": entry()}),
    "too many": says(None, {"1": entry()}, GOOD, GOOD),
    "none": says(),
    "a first one": says({"0": entry()}, {"1": entry()}, GOOD),
    "null later": says(None, None, GOOD),
    "another token": says(None, {"7": entry()}, GOOD),
    "more likely ones": says(None, {str(n): entry() for n in range(9)}, GOOD),
    "no id": says(None, {"1": entry(), SECRET: entry()}, GOOD),
    "a negative id": says(None, {"1": entry(), "-1": entry()}, GOOD),
    "an id beyond any vocabulary": says(None, {"1": entry(), str(2**40): entry()}, GOOD),
    "above 0": says(None, {"1": entry(5.0)}, GOOD),
    "no number": says(None, {"1": entry(SECRET)}, GOOD),
    "a negative rank": says(None, {"1": entry(rank=-1)}, GOOD),
    "a huge token": says(None, {"1": entry(decoded_token="x" * 100_000)}, GOOD),
    "no choice": lambda exchange: exchange.whole({"choices": []}),
    "no list": lambda exchange: exchange.whole({"choices": [{"prompt_logprobs": SECRET}]}),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_wrong_ones_are_an_error_of_their_upstream(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    hostile, good = FakeUpstream(), FakeUpstream()
    hostile.weight = FIRST
    async with fakes(hostile, good), remote(hostile, good) as engine:
        hostile.faults = [HOSTILE[name]]
        sink = await ask(engine, "a", 10, prompt_logprobs=2).end()
    assert sink.failure is None
    assert sink.prompt == ((RankedToken(0, "0 "),), place(1, 2), place(2, 2))
    assert f"the upstream {hostile.url} is left out" in caplog.text
    assert SECRET not in caplog.text


def test_so_many_that_no_answer_could_hold_them_are_refused_before_they_are_asked_for() -> None:
    assert refusal_of_size(MAX_ENTRIES, 0) is None
    assert refusal_of_size(MAX_ENTRIES + 1, 0) is not None
    refusal = refusal_of_size(MAX_ENTRIES // 21 + 1, 20)
    assert (
        refusal == f"With 20 prompt_logprobs, a prompt may have {MAX_ENTRIES // 21} tokens at most."
    )


async def test_every_api_of_a_server_in_front_of_vllm_has_them() -> None:
    """The native API's whole answers, and completions with `prompt_logprobs` or an echo."""
    one = FakeUpstream()
    async with (
        fakes(one),
        front(one.url) as server,
        httpx.AsyncClient(base_url=server.url, timeout=120) as client,
    ):

        async def answer(path: str, **fields: Any) -> Any:
            body = {"prompt": "one two three", "max_tokens": 2, **fields}
            return (await client.post(path, json=body)).json()

        native = await answer("/generate", prompt_logprobs=1, stream=False)
        completion = await answer(COMPLETIONS, prompt_logprobs=1)
        echo = await answer(COMPLETIONS, echo=True, logprobs=1)
    first, second, third = native["prompt_logprobs"]
    assert first is None
    assert second["1"] == {"logprob": -5.0, "rank": 5, "decoded_token": "1 "}
    assert set(third) == {"2", "101"}
    assert completion["choices"][0]["prompt_logprobs"] == native["prompt_logprobs"]
    assert native["text"] == completion["choices"][0]["text"] == "3 4 "
    (choice,) = echo["choices"]
    assert choice["text"] == "0 1 2 3 4 "
    assert choice["logprobs"]["tokens"] == ["0 ", "1 ", "2 ", "3 ", "4 "]
    assert choice["logprobs"]["token_logprobs"][:3] == [None, -5.0, -5.0]
