"""Bodies of Anthropic's API become requests to the engine, or a refusal that repeats nothing."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.api.anthropic.fields import CountTokensRequest, MessagesRequest, parse_fields
from penstock.api.anthropic.frames import MessageForm
from penstock.api.tolerance import Notes
from penstock.engine.protocol import ModelInfo
from penstock.errors import InvalidFields
from penstock.request import Request, Sampling

HELLO = [{"role": "user", "content": "Hello"}]
ALL = ModelInfo(
    "rill",
    "test",
    1000,
    1,
    (
        *("tools", "json_schema", "tools_with_schema", "reasoning_effort", "reasoning_switch"),
        *("thinking_budget", "last_message"),
    ),
    sampling=Sampling(temperature=0.8, min_p=0.05),
)
TOOL = {"name": "f", "input_schema": {"type": "object"}}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}


def requested(info: ModelInfo = ALL, **fields: Any) -> tuple[Request, list[str]]:
    notes = Notes()
    asked = parse_fields(MessagesRequest, {"messages": HELLO, **fields}, notes)
    return asked.request(info), list(notes.names)


def test_sampling_that_a_request_does_not_give_is_the_model_s_own() -> None:
    request, _ = requested(top_k=-1, top_p=0.5)
    assert request.sampling == msgspec.structs.replace(ALL.sampling, top_k=0, top_p=0.5)


@pytest.mark.parametrize(
    ("fields", "effort", "budget"),
    [
        ({}, "none", None),
        ({"thinking": {"type": "disabled"}}, "none", None),
        ({"thinking": {"type": "adaptive"}}, None, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low", None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, None, 2000),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000.0}}, None, 2000),
    ],
    ids=str,
)
def test_thinking_becomes_reasoning(fields: Any, effort: str | None, budget: int | None) -> None:
    request, names = requested(**fields)
    assert (request.reasoning_effort, request.thinking_budget) == (effort, budget)
    assert request.separate_reasoning
    assert names == []


def test_effort_and_budgets_without_effect_are_named() -> None:
    request, names = requested(output_config={"effort": "low"})
    assert (request.reasoning_effort, names) == ("none", ["output_config.effort"])
    request, names = requested(thinking={"type": "adaptive", "budget_tokens": 2000})
    assert (request.thinking_budget, names) == (None, ["thinking.budget_tokens"])


def test_an_answer_under_a_schema_has_no_thinking() -> None:
    request, names = requested(thinking={"type": "adaptive"}, output_config={"format": SCHEMA})
    assert (request.reasoning_effort, request.separate_reasoning) == ("none", False)
    assert names == ["thinking"]


def test_a_model_that_cannot_stop_thinking_hides_its_thoughts() -> None:
    info = msgspec.structs.replace(ALL, supports=())
    request, names = requested(info, thinking={"type": "disabled"})
    assert (request.reasoning_effort, request.separate_reasoning) == (None, True)
    assert names == ["thinking"]
    asked = parse_fields(MessagesRequest, {"messages": HELLO}, Notes())
    assert asked.display == "hidden"


@pytest.mark.parametrize(
    ("choice", "required", "parallel"),
    [
        (None, False, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, False, False),
        ({"type": "any"}, True, True),
        ({"type": "tool", "name": "f"}, True, True),
    ],
    ids=str,
)
def test_a_choice_of_tools(choice: Any, required: bool, parallel: bool) -> None:
    request, _ = requested(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert (request.tool_call_required, request.parallel_calls) == (required, parallel)
    names = [each["function"]["name"] for each in json.loads(request.tools or "")]
    assert names == (["f"] if choice and choice["type"] == "tool" else ["f", "g"])
    request, _ = requested(tools=[TOOL], tool_choice={"type": "none"})
    assert request.tools is None


def test_an_answer_that_has_begun_is_continued() -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Well,"}]
    assert requested(messages=begun)[0].continue_last_message
    assert not requested(messages=[*begun, *HELLO])[0].continue_last_message
    assert not requested()[0].continue_last_message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL, TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}},
        {"tools": [{"name": "f", "input_schema": {"a": "x" * 70_000}}]},
        {"stop_sequences": ["a"] * 65},
        {"model": "m" * 257},
        {"temperature": 2.1},
        {"thinking": {"type": "enabled", "budget_tokens": -1}},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_field_out_of_its_bounds_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidFields):
        requested(**fields)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
KINDS = ["text", "thinking", "tool_use", "tool_result", "document", "search_result", "image", "x"]
blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | json_values},
    optional={
        name: json_values | st.just([{"type": "text", "text": "a"}])
        for name in ("text", "content", "input", "id", "name", "tool_use_id", "source", "thinking")
    },
)
turns = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]) | json_values,
        "content": st.lists(blocks, max_size=4) | json_values,
    }
)
bodies = st.fixed_dictionaries(
    {"messages": st.lists(turns, max_size=4) | json_values},
    optional={
        name: json_values | st.sampled_from([[TOOL], {"type": "any"}, {"type": "adaptive"}, SCHEMA])
        for name in MessagesRequest.model_fields
        if name != "messages"
    },
)


@settings(deadline=None, max_examples=120)
@given(bodies, st.booleans(), st.sampled_from([MessagesRequest, CountTokensRequest]))
def test_no_body_makes_the_parser_raise_anything_but_a_refusal(
    body: dict[str, Any], strict: bool, model: type[CountTokensRequest]
) -> None:
    notes = Notes(strict=strict)
    with contextlib.suppress(InvalidFields):
        asked = parse_fields(model, body, notes)
        assert asked.to_request(ALL, max_tokens=0).messages
    assert notes.header().isascii()


def test_a_form_is_saved_and_loaded() -> None:
    form = MessageForm("msg_a", "claude-x", "omitted", 64000)
    assert MessageForm.load(form.save()) == form
