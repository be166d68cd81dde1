"""Over upstreams that get texts, requests that need token ids are refused."""

import pytest

from penstock.request import UnnamedTokens
from tests.support.fake_upstream import FakeUpstream, fakes
from tests.support.remote import ask, remote, text_from

PROMPT = 3


async def test_a_prompt_of_token_ids_is_refused_where_only_texts_are_taken() -> None:
    one = FakeUpstream("openai")
    async with fakes(one), remote(one) as engine:
        refused = await ask(engine, "a", 5, prompt=None, prompt_ids=(5, 6, 7)).end()
    assert refused.failure is not None
    assert refused.failure[0] == "unsupported_field"
    assert "as text" in refused.failure[1]
    assert one.asked == []


async def test_nobody_counts_the_tokens_of_a_prompt_without_token_ids() -> None:
    one = FakeUpstream("openai")
    async with fakes(one), remote(one) as engine:
        refused = await ask(engine, "a", 0).end()
    assert refused.failure is not None
    assert refused.failure[0] == "unsupported_field"
    assert refused.prompt_ids == ()


@pytest.mark.parametrize(
    ("kind", "prompt_ids", "generated"),
    [
        ("openai", (1, 2, 3), (4, 5)),
        ("vllm", (), (UnnamedTokens("3 4 ", 2),)),
    ],
)
async def test_an_answer_does_not_go_on_at_another_level(
    kind: str, prompt_ids: tuple[int, ...], generated: tuple[int | UnnamedTokens, ...]
) -> None:
    one = FakeUpstream(kind)
    async with fakes(one), remote(one) as engine:
        begun = {"prompt_ids": prompt_ids, "generated": generated}
        sink = await ask(engine, "a", 5, **begun).end()
        anew = await ask(engine, "b", 5, prompt_ids=prompt_ids).end()
    assert sink.failure is not None
    assert sink.failure[0] == "engine_died"
    assert (sink.pieces, len(one.asked)) == ([], 1)
    assert anew.text() == text_from(PROMPT, 5)
