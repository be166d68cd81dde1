"""The user's choices become the intended requests."""

import json
import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.plan import Lengths, Load, Prompts, RequestTemplate, parse_field, parse_slo


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers())
def test_a_range_of_lengths_is_kept(low: int, more: int, seed: int) -> None:
    lengths = Lengths.parse(f"{low}-{low + more}")
    assert low <= lengths.draw(random.Random(seed)) <= low + more
    assert Lengths.parse(str(low)).draw(random.Random(seed)) == low


@pytest.mark.parametrize("text", ["", "0", "-3", "5-", "9-3", "a", "1.5", "3-b"])
def test_what_is_no_length_is_refused(text: str) -> None:
    if text == "5-":  # an open end is a plain number
        assert Lengths.parse(text) == Lengths(5, 5)
        return
    with pytest.raises(ValueError, match="is not a length"):
        Lengths.parse(text)


@given(st.floats(0.2, 5), st.integers(0, 40), st.integers(60, 4000))
def test_calibrated_prompts_have_the_tokens_that_were_asked_for(
    per_word: float, overhead: int, tokens: int
) -> None:
    def count(num_words: int) -> int:
        return round(overhead + per_word * num_words)

    prompts = Prompts(lengths=Lengths(tokens, tokens))
    prompts = prompts.calibrated((16, count(16)), (144, count(144)))
    made = prompts.draw(0, random.Random(1))
    # Within one word, plus the rounding of the two measured counts.
    assert abs(count(len(made.split())) - tokens) <= per_word + 1 + 2 * tokens / (128 * per_word)


def test_every_synthetic_prompt_is_another_and_the_same_seed_gives_the_same() -> None:
    asking = RequestTemplate("chat", "m", Lengths(1, 50))
    prompts = Prompts(lengths=Lengths(20, 40))
    first = list(asking.bodies(prompts, 1, 50))
    assert len(set(first)) == 50
    assert first == list(asking.bodies(prompts, 1, 50))
    assert first != list(asking.bodies(prompts, 2, 50))


def test_bodies_of_both_apis() -> None:
    prompts = Prompts(["one", "two"])
    fields = {"temperature": 0, "max_tokens": None, "max_completion_tokens": 9}
    chat = RequestTemplate("chat", "m", Lengths(5, 5), fields=fields)
    assert [json.loads(body) for body in islice(chat.bodies(prompts, 0), 3)] == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_completion_tokens": 9,
        }
        for content in ("one", "two", "one")
    ]
    plain = RequestTemplate("completions", "m", Lengths(5, 5), include_usage=False)
    assert json.loads(next(plain.bodies(prompts, 0))) == {
        "model": "m",
        "prompt": "one",
        "max_tokens": 5,
        "stream": True,
    }


def test_fields_are_json_where_they_are() -> None:
    assert parse_field("ignore_eos=true") == ("ignore_eos", True)
    assert parse_field("stop=a=b") == ("stop", "a=b")
    assert parse_field("seed=null") == ("seed", None)
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_field("seed")


def test_limits_have_units() -> None:
    assert parse_slo("ttft=500ms, itl=0.05s,e2e=10s") == {"ttft": 0.5, "itl": 0.05, "e2e": 10.0}


@pytest.mark.parametrize("text", ["", "ttft", "ttft=5", "tpot=5ms", "itl=-1ms", "itl=nans"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a limit"):
        parse_slo(text)


def test_even_arrivals_are_even() -> None:
    assert list(islice(Load(rate=4, arrivals="constant").due_times(0), 4)) == [0, 0.25, 0.5, 0.75]
