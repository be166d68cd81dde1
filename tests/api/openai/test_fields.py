"""The fields of OpenAI's API: supported values reach the engine, others are refused by name."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.openai.chat import REFUSED_CHAT, parse_chat
from penstock.api.openai.completion import parse_completion
from penstock.api.openai.errors import param_of
from penstock.api.openai.fields import Common
from penstock.api.tolerance import Notes
from penstock.engine.protocol import Feature, ModelInfo
from penstock.errors import InvalidFields
from penstock.request import Message, ToolUse

MARK = "zqxj"
"""Part of every wrong value; no message may contain it."""

TURN = {"role": "user", "content": MARK}
INFO = ModelInfo(
    "rill",
    "llamacpp",
    1024,
    4,
    (
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "top_logprobs",
        "json_schema",
        "tools",
        "reasoning_switch",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
        "grammar",
        "use_cache",
        "template_kwargs",
        "last_message",
        "return_token_ids",
    ),
    2048,
)


def refusal_of(parse: Any, body: dict[str, Any], *, strict: bool = True) -> InvalidFields:
    with pytest.raises(InvalidFields) as refused:
        parse(body, Notes(strict=strict)).check(INFO)
    return refused.value


def test_a_refused_feature_comes_with_the_engine_s_advice() -> None:
    advice: dict[Feature, str] = {"tools": "It needs a parser."}
    body = {"messages": [TURN], "tools": [tool("look")], "reasoning_effort": "low"}
    with pytest.raises(InvalidFields) as refused:
        parse_chat(body, Notes(strict=True)).check(
            ModelInfo("rill", "vllm", 1024, 4, (), 2048, advice)
        )
    assert [each.message for each in refused.value.errors] == [
        "tools: It needs a parser.",
        "reasoning_effort: The vllm engine does not support this field with this model. Leave it"
        " out.",
    ]


def rows(name: str, code: str, *values: object) -> list[Any]:
    return [pytest.param(name, value, code, id=f"{name}={value!r}"[:60]) for value in values]


def format_of(schema: object, **fields: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **fields}}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call_of(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "a", "arguments": arguments}}


def calling(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call_of(arguments)]}


COMMON_ROWS = [
    *rows("seed", "out_of_range", -2, 2**63, 2**70),
    *rows("seed", "invalid_type", True, "7", 1.0, 7.5, [], {}),
    *rows("temperature", "out_of_range", -0.1, 2.1, 10**30),
    *rows("temperature", "invalid_type", True, "1", [1]),
    *rows("top_p", "out_of_range", 1.0001, -1),
    *rows("top_k", "out_of_range", -2, 2**31),
    *rows("top_k", "invalid_type", 0.01),
    *rows("n", "out_of_range", 0, -1, 9, 129, 10**6),
    *rows("n", "invalid_type", "1", True, 1.5),
    *rows("max_tokens", "out_of_range", 0, -1, 2**31, 2**64),
    *rows("max_tokens", "invalid_type", "5", 5.0, True),
    *rows("stop", "invalid_type", [1], {}, 1, [None], [[MARK]], True),
    *rows("stop", "too_short", "", ["a", ""]),
    *rows("stop", "too_long", MARK * 65),
    *rows("stop", "too_many_items", ["a"] * 65),
    *rows("stream", "invalid_type", "yes", 1, 0, []),
    *rows("stream_options", "invalid_value", {"include_usage": True}),  # not streamed
    *rows("presence_penalty", "out_of_range", -2.1, 2.1),
    *rows("frequency_penalty", "out_of_range", -2.1, 2.1),
    *rows("frequency_penalty", "invalid_type", MARK),
    *rows("logit_bias", "invalid_type", [MARK], MARK, {"1": MARK}, {"1": True}, {"1": None}),
    *rows("logit_bias", "invalid_value", {MARK: 1}, {"-1": 1}, {"1.0": 1}, {"": 1}, {"9" * 11: 1}),
    *rows("logit_bias", "invalid_value", {"2048": 1}),  # the ids end at 2047
    *rows("logit_bias", "out_of_range", {"1": 101}, {"1": -101}),
    *rows("logit_bias", "too_many_items", {f"{n}": 1 for n in range(301)}),
    *rows("user", "invalid_type", 5),
    *rows("temprature", "unknown_field", 0.7),
    *rows("api_base", "unknown_field", "http://" + MARK),
    *rows("prompt_embeds", "unsupported_field", MARK),
    *rows("use_beam_search", "unsupported_field", True),
    *rows("resumable", "unknown_field", True),
    *rows("min_p", "out_of_range", -0.1, 1.1),
    *rows("repetition_penalty", "out_of_range", 0, -1, 101),
    *rows("repeat_penalty", "invalid_type", MARK),
    *rows("min_tokens", "out_of_range", -1, 2**31),
    *rows("ignore_eos", "invalid_type", 1, MARK),
    *rows("stop_token_ids", "invalid_type", 5, [MARK], [True]),
    *rows("stop_token_ids", "out_of_range", [-1], [2**31]),
    *rows("stop_token_ids", "too_many_items", [1] * 65),
    *rows("stop_token_ids", "invalid_value", [2048]),  # the vocabulary has that many
    *rows("skip_special_tokens", "unsupported_field", False),
    *rows("structured_outputs", "invalid_type", MARK, {"regex": 5}, {"choice": MARK}),
    *rows("structured_outputs", "invalid_value", {"regex": "a", "json_object": True}),
    *rows("structured_outputs", "unsupported_field", {"structural_tag": "{}"}),
    *rows("guided_json", "invalid_schema", MARK, {"enum": ["a" * 65_536]}),
    *rows("guided_json", "invalid_type", 5, "5"),
    *rows("guided_regex", "too_long", MARK * 20_000),
    *rows("guided_choice", "too_few_items", []),
    *rows("guided_grammar", "invalid_type", {}),
    *rows("grammar", "invalid_type", {}),
    *rows("response_format", "invalid_value", {"type": MARK}, {"type": "json_schema"}),
    *rows("response_format", "invalid_value", {"type": "text", "format": {"a": 1}}),
    *rows("response_format", "unsupported_field", {"type": "structural_tag", "format": {}}),
]


@pytest.mark.parametrize(("name", "value", "code"), COMMON_ROWS)
@pytest.mark.parametrize("parse", [parse_chat, parse_completion], ids=["chat", "completion"])
def test_a_wrong_value_is_refused_by_name(parse: Any, name: str, value: object, code: str) -> None:
    prompt = {"prompt": "a"} if parse is parse_completion else {"messages": [TURN]}
    began = time.process_time()
    problem = refusal_of(parse, {**prompt, name: value})
    assert time.process_time() - began < 1
    assert problem.errors[0].code == code, problem.errors
    assert (param_of(problem) or "").startswith(name)
    assert all(MARK not in error.message for error in problem.errors)


CHAT_ROWS = [
    *rows("messages", "too_few_items", []),
    *rows("messages", "too_many_items", [TURN] * 1025, [TURN] * 100_000),
    *rows("messages", "invalid_type", None, MARK, TURN, [MARK], [{**TURN, "content": 1}]),
    *rows("messages", "invalid_value", [{**TURN, "role": "root"}]),
    *rows("messages", "missing_field", [{**TURN, "role": "tool"}]),
    *rows("messages", "invalid_value", [TURN, {**TURN, "role": "tool", "tool_call_id": MARK}]),
    *rows("messages", "invalid_value", [{**TURN, "tool_call_id": MARK}]),
    *rows("messages", "invalid_value", [{**TURN, "tool_calls": [call_of("{}")]}]),
    *rows("messages", "invalid_value", [{**TURN, "reasoning_content": MARK}]),
    *rows("messages", "invalid_type", [{"role": "assistant", "content": None}]),
    *rows("messages", "invalid_value", [calling(MARK)], [calling("[]")], [calling("{")]),
    *rows("tools", "invalid_type", MARK, {}),
    *rows("tools", "too_few_items", []),
    *rows("tools", "too_many_items", [tool(f"f{n}") for n in range(1025)]),
    *rows("tools", "invalid_value", [tool("a"), tool("a")], [{"type": MARK}]),
    *rows("tools", "invalid_value", [tool("a\n")], [tool('"')], [tool("a" * 257)], [tool("")]),
    *rows("tools", "invalid_schema", [tool("a", {"enum": ["a" * 65_536]})]),
    *rows("tool_choice", "invalid_value", "auto", "required", MARK),  # without tools
    *rows("parallel_tool_calls", "invalid_value", False),  # without tools
    *rows("reasoning_effort", "invalid_value", MARK),
    *rows(
        "reasoning_effort", "unsupported_field", "low", "high"
    ),  # the model has no degrees of effort
    *rows("messages", "missing_field", [{"content": MARK}], [{"role": "user"}]),
    *rows("messages", "unknown_field", [{**TURN, "name": MARK}]),
    *rows("messages", "invalid_type", [{**TURN, "tool_calls": [MARK]}]),
    *rows(
        "messages",
        "invalid_value",
        [{**TURN, "content": [{"type": "image_url", "image_url": {"url": MARK}}]}],
        [{**TURN, "content": [{"type": "input_audio", "input_audio": {}}]}],
    ),
    *rows("max_completion_tokens", "out_of_range", 0),
    *rows("logprobs", "invalid_type", 1, "yes"),
    *rows("top_logprobs", "invalid_value", 5),  # without logprobs
    *rows("top_logprobs", "out_of_range", -1, 21, 10**6),
    *rows("response_format", "invalid_value", {"type": MARK}, {"type": "json_schema"}),
    *rows("response_format", "missing_field", {"type": "json_schema", "json_schema": {}}),
    *rows("response_format", "invalid_type", format_of(5), format_of({}, strict=MARK)),
    *rows("response_format", "invalid_schema", format_of({"enum": ["a" * 65_536]})),
    *rows("store", "invalid_value", True),
    *rows("modalities", "invalid_value", ["text", "audio"]),
    *rows("service_tier", "invalid_value", "flex"),
    *rows("metadata", "invalid_type", MARK, {"a": 1}),
    *(
        row
        for name in sorted({*REFUSED_CHAT, "prediction", "verbosity"})
        for row in rows(name, "unsupported_field", MARK)
    ),
    *rows("prompt", "unknown_field", MARK),
]


@pytest.mark.parametrize(("name", "value", "code"), CHAT_ROWS)
def test_a_wrong_value_in_a_chat_is_refused_by_name(name: str, value: object, code: str) -> None:
    problem = refusal_of(parse_chat, {"messages": [TURN], name: value})
    assert problem.errors[0].code == code, problem.errors
    assert (param_of(problem) or "").startswith(name)
    assert all(MARK not in error.message for error in problem.errors)


COMPLETION_ROWS = [
    *rows("prompt", "empty_prompt", "", [], [""], ["a", ""], [[]], ["a", []]),
    *rows("prompt", "invalid_type", None, 5, {"a": MARK}, [None], [1, "a"], ["a", {}], [True]),
    *rows("prompt", "invalid_type", [1.5], [[MARK]], [[[1]]]),
    *rows("prompt", "invalid_value", [-1], [2**31], [2048], ["a", [1, 2048]]),
    *rows("prompt", "too_many_items", ["a"] * 17, [MARK] * 100_000),
    *rows("best_of", "invalid_value", 0, 2, 10**6),
    *rows("best_of", "invalid_type", True, "1"),
    *rows("logprobs", "out_of_range", -1, 21, 10**6),
    *rows("logprobs", "invalid_type", True, 1.0),
    *rows("echo", "invalid_type", 1),
    *rows("suffix", "invalid_type", 5, [MARK]),
    *rows("messages", "unknown_field", [TURN]),
]


@pytest.mark.parametrize(("name", "value", "code"), COMPLETION_ROWS)
def test_a_wrong_value_in_a_completion_is_refused_by_name(
    name: str, value: object, code: str
) -> None:
    problem = refusal_of(parse_completion, {"prompt": "a", name: value})
    assert problem.errors[0].code == code, problem.errors
    assert (param_of(problem) or "").startswith(name)
    assert all(MARK not in error.message for error in problem.errors)


UNNOTED: dict[str, tuple[object, ...]] = {
    "best_of": (0,),
    "grammar": ({},),
    "guided_choice": ([],),
    "guided_grammar": ({},),
    "max_completion_tokens": (0,),
    "max_tokens": (-1, 5.0),
    "messages": (
        *([TURN] * 1025, [TURN] * 100_000),
        *([{**TURN, "role": "tool"}], [{"role": "user"}]),
        [TURN, {**TURN, "role": "tool", "tool_call_id": MARK}],
        [{"role": "assistant", "content": None}],
    ),
    "n": (0,),
    "parallel_tool_calls": (False,),
    "seed": ([], {}),
    "stop": ({}, ""),
    "stream": ([],),
    "stream_options": ({"include_usage": True},),
    "tool_choice": ("auto",),
    "tools": ({}, []),
}
"""Values of the rows above that ask for nothing that is left out."""
NOTED: dict[str, tuple[object, ...]] = {
    "api_base": ("http://" + MARK,),
    "messages": (
        *([{**TURN, "name": MARK}], [TURN], [{**TURN, "tool_call_id": MARK}]),
        *([{**TURN, "tool_calls": [each]}] for each in (MARK, call_of("{}"))),
        [{**TURN, "reasoning_content": MARK}],
        *([calling(each)] for each in (MARK, "[]", "{")),
    ),
    "metadata": (MARK, {"a": 1}),
    "prediction": (MARK,),
    "prompt": (MARK,),
    "reasoning_effort": ("low", "high"),
    "resumable": (True,),
    "service_tier": ("flex",),
    "temprature": (0.7,),
    "tools": ([{"type": MARK}],),
    "user": (5,),
    "verbosity": (MARK,),
}
"""Values of the rows above that are left out and noted."""
CONVERTED: dict[str, tuple[object, ...]] = {
    "best_of": ("1",),
    "echo": (1,),
    "ignore_eos": (1,),
    "logprobs": (1, 1.0),
    "max_tokens": ("5",),
    "n": ("1",),
    "seed": ("7", 1.0),
    "stop": (["a", ""],),
    "stream": (1, 0),
    "temperature": ("1",),
}
"""Values of the rows above that mean what other servers take them for."""


def is_in(name: str, value: object, table: dict[str, tuple[object, ...]]) -> bool:
    return repr(value) in map(repr, table.get(name, ()))


@pytest.mark.parametrize(
    ("parse", "name", "value", "code"),
    [
        pytest.param(parse, *row.values, id=f"{parse.__name__}-{row.id}")
        for parse, table in (
            (parse_chat, [*COMMON_ROWS, *CHAT_ROWS]),
            (parse_completion, [*COMMON_ROWS, *COMPLETION_ROWS]),
        )
        for row in table
    ],
)
def test_without_strict_only_what_changes_nothing_is_accepted(
    parse: Any, name: str, value: object, code: str
) -> None:
    prompt = {"prompt": "a"} if parse is parse_completion else {"messages": [TURN]}
    body: dict[str, Any] = {**prompt, name: value}
    notes = Notes()
    is_unset = name == "max_tokens" and value == 0 and parse is parse_chat
    if is_unset or any(is_in(name, value, each) for each in (UNNOTED, NOTED, CONVERTED)):
        parse(body, notes).check(INFO)
        assert len(notes.names) == (1 if is_in(name, value, NOTED) else 0)
        return
    problem = refusal_of(parse, body, strict=False)
    assert problem.errors[0].code == code, problem.errors
    assert all(MARK not in error.message for error in problem.errors)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"echo": True, "prompt": [1, 2]}, "echo"),
        ({"n": 3, "best_of": 1}, "best_of"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
    ],
    ids=str,
)
def test_fields_that_do_not_go_together_are_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    assert param_of(refusal_of(parse_completion, {"prompt": "a", **fields})) == param


def test_both_names_of_the_token_limit_are_too_many() -> None:
    body = {"messages": [TURN], "max_tokens": 5, "max_completion_tokens": 5}
    assert param_of(refusal_of(parse_chat, body)) == "max_tokens"


def test_a_place_within_a_field_is_spelt_as_openai_does() -> None:
    body = {"messages": [TURN, {"role": "user", "content": [{"type": "text"}]}]}
    assert param_of(refusal_of(parse_chat, body)) == "messages[1].content[0].text"


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    for parse, required in ((parse_chat, "messages"), (parse_completion, "prompt")):
        asked: Any = parse
        value = [TURN] if required == "messages" else "a"
        model = type(asked({required: value}))
        names = {field.alias or name for name, field in model.model_fields.items()}
        names |= set() if required == "prompt" else set(REFUSED_CHAT)
        body: dict[str, Any] = dict.fromkeys(names)
        (request,) = asked({**body, required: value}).requests(INFO)
        (plain,) = asked({required: value}).requests(INFO)
        assert request.sampling == plain.sampling
        assert request.max_tokens == plain.max_tokens


def test_every_field_reaches_the_engine() -> None:
    asked = parse_chat(
        {
            "model": "rill",
            "messages": [{"role": "developer", "content": "A"}, TURN],
            "max_completion_tokens": 7,
            "n": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 3,
            "seed": 2**63 - 1,
            "stop": "x",
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "logit_bias": {"5": -100},
            "logprobs": True,
            "top_logprobs": 4,
            "response_format": {"type": "json_object"},
        }
    )
    asked.check(INFO)
    first, second = asked.requests(INFO)
    assert first.messages == (Message("system", "A"), Message("user", MARK))
    assert (first.max_tokens, first.must_fit, first.stop) == (7, False, ("x",))
    assert (first.top_logprobs, first.json_schema) == (4, '{"type": "object"}')
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == ((5, -100.0),)
    assert (sampling.seed, second.sampling.seed) == (2**63 - 1, 0)
    assert first.id != second.id


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "names", "tool_call_required", "parallel"),
    [
        (None, ["a", "b"], False, True),
        ("auto", ["a", "b"], False, True),
        ("required", ["a", "b"], True, True),
        (named("b"), ["b"], True, False),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [named("a")]},
            },
            ["a"],
            True,
            True,
        ),
        ("none", None, False, True),
    ],
    ids=str,
)
def test_the_model_is_shown_the_tools_that_it_may_call(
    choice: object, names: list[str] | None, tool_call_required: bool, parallel: bool
) -> None:
    body = {"messages": [TURN], "tools": [tool("a"), tool("b")], "tool_choice": choice}
    (request,) = parse_chat(body).requests(INFO)
    shown = [each["function"]["name"] for each in json.loads(request.tools or "[]")]
    assert (shown or None) == names
    assert (request.tool_call_required, request.parallel_calls) == (tool_call_required, parallel)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": named("c")}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=str,
)
def test_fields_that_do_not_go_with_tools_are_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    body = {"messages": [TURN], "tools": [tool("a")], **fields}
    assert param_of(refusal_of(parse_chat, body)) == param


def test_a_conversation_with_tool_calls_reaches_the_engine() -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": "5"}
    asked = parse_chat({"messages": [TURN, {**calling('{"x": 1}'), "reasoning": "Hm"}, result]})
    (request,) = asked.requests(INFO)
    assert request.messages is not None
    assert request.messages[1:] == (
        Message("assistant", "", "Hm", (ToolUse("c", "a", '{"x": 1}'),)),
        Message("tool", "5", tool_call_id="c"),
    )
    assert asked.features() == {}  # a template without tools shows calls and results as text


def test_without_a_limit_the_answer_may_fill_the_context() -> None:
    (request,) = parse_chat({"messages": [TURN]}).requests(INFO)
    assert (request.max_tokens, request.must_fit) == (1024, False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.sampled_from([parse_chat, parse_completion]),
    st.dictionaries(
        st.sampled_from(sorted({*Common.model_fields, "messages", "prompt", "logprobs", "echo"})),
        json_values | st.sampled_from([0, 1, "a", [TURN], ["a"], [1], {"1": 1}]),
    ),
)
def test_no_object_makes_the_parser_raise_anything_but_a_refusal(
    parse: Any, body: dict[str, Any]
) -> None:
    with contextlib.suppress(InvalidFields):
        asked = parse(body)
        asked.check(INFO)
        assert asked.requests(INFO)
