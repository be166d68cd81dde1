"""The fields of vLLM's and llama.cpp's servers, and the requests that they make."""

import json
from typing import Any, get_args

import pytest

from penstock.api.openai.chat import parse_chat
from penstock.api.openai.completion import parse_completion
from penstock.api.openai.errors import param_of
from penstock.engine.protocol import Feature, ModelInfo
from penstock.errors import InvalidFields
from penstock.request import Grammar, Request, Sampling

OWN = Sampling(0.6, 0.9, 20, None, 0.0, 0.0, (), 0.1, 1.05)
INFO = ModelInfo("rill", "any", 1024, 4, get_args(Feature), 2048, sampling=OWN)
TURN = {"role": "user", "content": "Hello!"}


def request_of(**fields: Any) -> Request:
    """Return the request of a chat with these fields."""
    asked = parse_chat({"messages": [TURN], **fields})
    asked.check(INFO)
    (request,) = asked.requests(INFO)
    return request


def refusal_of(**fields: Any) -> InvalidFields:
    with pytest.raises(InvalidFields) as refused:
        request_of(**fields)
    return refused.value


def test_a_request_that_does_not_choose_is_sampled_as_the_model_s_files_say() -> None:
    assert request_of().sampling == OWN
    chosen = request_of(
        temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1, seed=3
    ).sampling
    assert chosen == Sampling(0.0, 1.0, 0, 3, 0.0, 0.0, (), 0.0, 1.0)
    (request,) = parse_completion({"prompt": "a", "top_k": 5}).requests(INFO)
    assert (request.sampling.top_k, request.sampling.temperature) == (5, 0.6)


def test_a_top_k_of_minus_1_is_off_and_a_seed_of_minus_1_is_random() -> None:
    assert request_of(top_k=-1).sampling.top_k == 0
    assert request_of(seed=-1).sampling.seed is None
    assert request_of(top_p=0).sampling.top_p == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"min_tokens": 5}, {"min_tokens": 5}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"stop_token_ids": [5, 6]}, {"stop_token_ids": (5, 6)}),
        ({"skip_special_tokens": False}, {"show_special_tokens": True}),
        ({"cache_prompt": False}, {"use_cache": False}),
        ({"return_token_ids": True}, {"return_token_ids": True}),
        ({"continue_final_message": True}, {"continue_last_message": True, "open_answer": True}),
        ({"add_generation_prompt": False}, {"open_answer": False}),
        (
            {"add_generation_prompt": False, "continue_final_message": True},
            {"continue_last_message": True},
        ),
        ({"thinking_budget": 5}, {"thinking_budget": 5}),
        ({"thinking_token_budget": 0}, {"thinking_budget": 0}),
        ({"thinking_budget_tokens": 7}, {"thinking_budget": 7}),
        ({"reasoning_budget_tokens": -1}, {"thinking_budget": None}),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "tone": "dry"}},
            {"reasoning_effort": "none", "template_kwargs": '{"tone": "dry"}'},
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": None, "template_kwargs": '{"enable_thinking": true}'},
        ),
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_field_reaches_the_engine(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    request = request_of(**fields)
    assert {name: getattr(request, name) for name in expected} == expected
    asked = parse_chat({"messages": [TURN], **fields})
    assert asked.features() or "reasoning_budget_tokens" in fields


def test_the_old_name_of_the_repetition_penalty_works_too() -> None:
    assert request_of(repeat_penalty=1.2).sampling.repetition_penalty == 1.2


SCHEMA = {"const": 5}
LIST = ["yes", "no"]
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}


@pytest.mark.parametrize(
    ("fields", "schema", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}, None),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, SCHEMA, None),
        ({"response_format": TAG}, None, Grammar("structural_tag", json.dumps(TAG))),
        ({"guided_json": SCHEMA}, SCHEMA, None),
        ({"guided_json": json.dumps(SCHEMA)}, SCHEMA, None),
        ({"json_schema": SCHEMA}, SCHEMA, None),
        ({"structured_outputs": {"json": SCHEMA}}, SCHEMA, None),
        ({"structured_outputs": {"json_object": True}}, {"type": "object"}, None),
        ({"structured_outputs": {"choice": LIST}}, None, Grammar("choice", '["yes", "no"]')),
        ({"structured_outputs": {"regex": "a+"}}, None, Grammar("regex", "a+")),
        ({"structured_outputs": {"grammar": "r"}}, None, Grammar("grammar", "r")),
        ({"structured_outputs": {"structural_tag": "{}"}}, None, Grammar("structural_tag", "{}")),
        ({"guided_choice": LIST}, None, Grammar("choice", '["yes", "no"]')),
        ({"guided_regex": "a+"}, None, Grammar("regex", "a+")),
        ({"guided_grammar": "r"}, None, Grammar("grammar", "r")),
        ({"grammar": "r"}, None, Grammar("grammar", "r")),
    ],
    ids=lambda value: str(value)[:50],
)
def test_an_answer_is_bound_by_the_name_that_each_server_has_for_it(
    fields: dict[str, Any], schema: Any, grammar: Grammar | None
) -> None:
    (completion,) = parse_completion({"prompt": "a", **fields}).requests(INFO)
    for request in (request_of(**fields), completion):
        assert request.grammar == grammar
        assert (request.json_schema and json.loads(request.json_schema)) == schema
    assert request_of(**fields).separate_reasoning is (schema is None and grammar is None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"grammar": "a", "guided_choice": ["a"]}, "grammar"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 6, "max_completion_tokens": 5}, "min_tokens"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "a" * 65_536}}, "chat_template_kwargs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_fields_that_contradict_each_other_are_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    assert param_of(refusal_of(**fields)) == param


def test_values_that_change_nothing_need_no_engine_that_can_do_more() -> None:
    fields = {
        "min_p": 0,
        "repetition_penalty": 1.0,
        "repeat_penalty": 1,
        "min_tokens": 0,
        "ignore_eos": False,
        "stop_token_ids": [],
        "skip_special_tokens": True,
        "cache_prompt": True,
        "return_token_ids": False,
        "thinking_budget": -1,
        "chat_template_kwargs": {},
        "add_generation_prompt": True,
        "continue_final_message": False,
        "include_reasoning": True,
        "response_format": {"type": "text"},
    }
    assert parse_chat({"messages": [TURN], **fields}).features() == {}
