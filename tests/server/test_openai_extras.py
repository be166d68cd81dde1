"""The fields of vLLM's and llama.cpp's servers have their effect, over real engines."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.calling import client_of
from tests.support.dying import mortal
from tests.support.openai_wire import CHAT, COMPLETIONS, chunks_of
from tests.support.raw import ask, post
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING

HELLO: Any = [{"role": "user", "content": "Hello"}]
STORY = "Once upon a time"
GREEDY: dict[str, Any] = {"model": "rill", "prompt": STORY, "temperature": 0}


@pytest.fixture(scope="module")
def rill() -> Iterator[RunningServer]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def thinker() -> Iterator[RunningServer]:
    with serve(engine_arg=[f"chat_template={REASONING}"]) as running:
        yield running


@pytest.fixture
def client(rill: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(rill) as client:
        yield client


def text_of(client: openai.OpenAI, *, max_tokens: int = 16, **fields: Any) -> str:
    """Return the text of a completion with these fields. (Its token 18 would be a near tie.)"""
    known = {**GREEDY, "max_tokens": max_tokens}
    known |= {name: fields.pop(name) for name in ("temperature", "seed") if name in fields}
    answer = client.completions.create(**known, extra_body=fields)
    text: str = answer.choices[0].text
    return text


def test_min_p_and_top_k_narrow_the_choice(client: openai.OpenAI) -> None:
    greedy = text_of(client)
    hot = {"temperature": 2, "top_p": 1, "top_k": -1, "min_p": 0, "seed": 5}
    assert text_of(client, **hot) != greedy
    assert text_of(client, **{**hot, "min_p": 1}) == greedy
    assert text_of(client, **{**hot, "top_k": 1}) == greedy
    assert text_of(client, **{**hot, "top_p": 0}) == greedy


def test_a_seed_of_minus_1_is_random(client: openai.OpenAI) -> None:
    hot = {"temperature": 2, "top_p": 1, "top_k": -1, "min_p": 0, "seed": -1}
    assert len({text_of(client, **hot) for _ in range(3)}) == 3


@pytest.mark.parametrize("name", ["repetition_penalty", "repeat_penalty"])
def test_a_repetition_penalty_leaves_no_token_twice(client: openai.OpenAI, name: str) -> None:
    fields = {name: 100.0, "return_token_ids": True, "ignore_eos": True}
    asked = {**GREEDY, "prompt": "Near the sea"}
    answer = client.completions.create(**asked, max_tokens=40, extra_body=fields)
    (choice,) = answer.to_dict()["choices"]
    prompt, ids = choice["prompt_token_ids"], choice["token_ids"]
    assert len({*prompt, *ids}) == len(set(prompt)) + len(ids)
    assert len(ids) > 20


def test_min_tokens_and_ignore_eos_make_an_answer_longer(client: openai.OpenAI) -> None:
    def usage(**fields: Any) -> tuple[int, str]:
        answer = client.completions.create(**GREEDY, max_tokens=600, extra_body=fields)
        return answer.usage.completion_tokens, answer.choices[0].finish_reason

    length, reason = usage()
    assert reason == "stop"
    assert usage(ignore_eos=True) == (600, "length")
    assert usage(min_tokens=length + 50)[0] >= length + 50
    # A stop string before the least length does not end the answer either, as in vLLM.
    *_, word, _ = client.completions.create(**GREEDY, max_tokens=10).choices[0].text.split()
    stopped = client.completions.create(
        **GREEDY, max_tokens=60, stop=[word], extra_body={"min_tokens": 20}
    )
    assert word in stopped.choices[0].text


def test_a_stop_token_ends_the_answer(client: openai.OpenAI) -> None:
    fields = {"return_token_ids": True}
    whole = client.completions.create(**GREEDY, max_tokens=20, extra_body=fields).to_dict()
    ids = whole["choices"][0]["token_ids"]
    fields["stop_token_ids"] = [ids[10]]  # type: ignore[assignment] # JSON
    answer = client.completions.create(**GREEDY, max_tokens=20, extra_body=fields)
    (choice,) = answer.to_dict()["choices"]
    at = ids.index(ids[10])
    assert choice["finish_reason"] == "stop"
    assert choice["token_ids"] == ids[: at + 1]
    assert whole["choices"][0]["text"].startswith(choice["text"])


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}x"}, "[0-9]{3}x"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'root ::= "a" [bc] "."'}, r"a[bc]\."),
        ({"grammar": 'root ::= "a" [bc] "."'}, r"a[bc]\."),
        ({"guided_json": {"enum": [{"a": 1}, 7]}}, r'\{"a": ?1\}|7'),
        ({"json_schema": {"const": True}}, "true"),
        ({"structured_outputs": {"regex": "[xy]z"}}, "[xy]z"),
        ({"structured_outputs": {"choice": ["é", '"']}}, 'é|"'),
        ({"structured_outputs": {"json": {"const": "a"}}}, '"a"'),
        ({"response_format": {"type": "json_object", "schema": {"const": {}}}}, r"\{\}"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_answer_follows_the_constraint_of_each_server(
    client: openai.OpenAI, fields: dict[str, Any], pattern: str
) -> None:
    assert re.fullmatch(pattern, text_of(client, **fields, max_tokens=30))
    chat = client.chat.completions.create(model="rill", messages=HELLO, extra_body=fields)
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"guided_regex": "(zqxj"}, "invalid_grammar", None),
        ({"grammar": "root ::= zqxj"}, "invalid_grammar", None),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "unsupported_field",
            "structured_outputs",
        ),
        ({"skip_special_tokens": False}, "unsupported_field", "skip_special_tokens"),
        ({"prompt_logprobs": 1}, "unsupported_field", "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "unsupported_field", "echo"),
        ({"min_tokens": 5, "guided_choice": ["a"]}, "unsupported_field", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_constraint_that_cannot_be_kept_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], code: str, param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        text_of(client, **fields)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert "zqxj" not in str(refused.value)


def test_the_last_message_is_continued(client: openai.OpenAI) -> None:
    turns: Any = [*HELLO, {"role": "assistant", "content": STORY}]
    ids = {"return_token_ids": True}
    chat = client.chat.completions.create(
        model="rill",
        messages=turns,
        max_tokens=5,
        temperature=0,
        extra_body={**ids, "continue_final_message": True},
    )
    story = client.completions.create(**GREEDY, max_tokens=1, extra_body=ids)
    prompt = story.to_dict()["choices"][0]["prompt_token_ids"]
    assert chat.to_dict()["prompt_token_ids"][2 - len(prompt) :] == prompt[2:]  # type: ignore[index] # a list


def test_a_thinking_budget_ends_the_reasoning_and_the_reasoning_may_be_left_out(
    thinker: RunningServer,
) -> None:
    def message(**fields: Any) -> dict[str, Any]:
        with client_of(thinker) as client:
            answer = client.chat.completions.create(
                model="rill", messages=HELLO, max_tokens=40, temperature=0, extra_body=fields
            )
        shown: dict[str, Any] = answer.to_dict()["choices"][0]["message"]  # type: ignore[index] # a list of objects
        return shown

    assert message()["content"] is None
    for name in (
        "thinking_budget",
        "thinking_token_budget",
        "thinking_budget_tokens",
        "reasoning_budget_tokens",
    ):
        cut = message(**{name: 4})
        assert cut["content"]
        assert len(cut["reasoning_content"]) < 40
    hidden = message(thinking_budget=4, include_reasoning=False)
    assert "reasoning_content" not in hidden
    assert hidden["content"] == cut["content"]
    off = message(chat_template_kwargs={"enable_thinking": False})
    assert off["content"]
    assert "reasoning_content" not in off


def test_the_mock_makes_answers_of_the_length_that_a_load_test_asks_for() -> None:
    body = {"prompt": "Hello", "max_tokens": 30, "min_tokens": 30, "ignore_eos": True}
    with serve(engine="mock", mock_interval=0, engine_arg=["length=5"]) as server:
        answer = ask(server.port, post(json.dumps(body).encode(), path=COMPLETIONS))
        answered = json.loads(answer.body)
    assert answered["usage"]["completion_tokens"] == 30


@pytest.mark.parametrize("is_thinking", [False, True], ids=["answer", "reasoning"])
def test_the_new_fields_survive_the_engine_s_death(is_thinking: bool, tmp_path: Path) -> None:
    """Text and usage equal those of an undisturbed stream."""
    fields: dict[str, Any] = {
        "stream": True,
        "max_tokens": 50,  # a longer text may meet a near tie
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }
    arguments = [f"chat_template={REASONING}"] if is_thinking else []
    if is_thinking:
        fields |= {"messages": HELLO, "thinking_budget": 40, "ignore_eos": True}
    else:
        fields |= {"prompt": STORY, "repetition_penalty": 0.98, "min_tokens": 45}
    path = CHAT if is_thinking else COMPLETIONS
    request = post(json.dumps(fields).encode(), path=path)
    with mortal(tmp_path, *arguments) as server:
        short = json.dumps({**fields, "max_tokens": 1, "min_tokens": 0}).encode()
        server.undisturbed(post(short, path=path))  # the prompt is cached now
        expected = chunks_of(server.undisturbed(request).body)
        chunks = chunks_of(server.cut_off(request).body)
    for of_answer in (chunks, expected):  # what the cache had depends on the engine's life
        del of_answer[-1]["usage"]["prompt_tokens_details"]
    assert chunks[-1]["usage"] == expected[-1]["usage"]
    for of_kind in (text_in, thoughts_in):
        assert of_kind(chunks) == of_kind(expected)


def text_in(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


def thoughts_in(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    return "".join(choice.get("delta", {}).get("reasoning_content", "") for choice in choices)
