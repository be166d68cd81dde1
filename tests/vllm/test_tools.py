"""Tools and reasoning with vLLM itself, as OpenAI's own client sees them.

The model is rill with a template for both (see `models.make_thinker`), in two servers. The first
has a parser for calls only and separates reasoning by the template's marks; the second has a parser
for each. The test that kills an engine comes last.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.calling import (
    BOTH,
    CALLS,
    HELLO,
    NAMED,
    ZONES,
    call_is_the_same_streamed_and_whole,
    call_that_is_cut_says_so,
    conversation_goes_on_with_what_the_tool_said,
    create,
    every_token_is_counted,
    joined,
    model_is_told_not_to_think,
    model_may_answer_instead,
    parameters_are_refused,
    reasoning_is_told_apart_streamed_and_whole,
    several_calls_and_only_one,
)
from tests.support.mcp import LISTS
from tests.support.openai_wire import CHAT, begin, chunks_of
from tests.support.raw import Connection, ask, post
from tests.support.servers import RunningServer, serve
from tests.vllm.engines import CONCLUDED_TOKENS, RESTART_LIMIT_S, SLOTS, core_of, engine_args
from tests.vllm.models import END_OF_THOUGHT_ID


@pytest.fixture(scope="module")
def thinker(models: Path) -> Iterator[RunningServer]:
    arguments = {**engine_args(), "tool_call_parser": "hermes"}
    arguments |= {"model": str(models / "thinker"), "slots": SLOTS}
    with serve(
        engine="tests.vllm.concluding:Concluding",
        model_name="thinker",
        engine_arg=[f"{name}={json.dumps(value)}" for name, value in arguments.items()],
    ) as server:
        yield server


@pytest.fixture(scope="module")
def parsed(models: Path) -> Iterator[RunningServer]:
    arguments = {**engine_args(), "tool_call_parser": "hermes", "reasoning_parser": "deepseek_r1"}
    with serve(
        engine="vllm",
        model=models / "thinker",
        slots=SLOTS,
        engine_arg=[f"{name}={json.dumps(value)}" for name, value in arguments.items()],
    ) as server:
        yield server


ROW = {"type": "array", "minItems": 1000}
THOUSANDS = {"type": "array", "minItems": 1000, "items": {**ROW, "items": ROW}}
NUM_TRIES = 10
NOTHING = {"$ref": "#/$defs/n"}
CALLS_AT_ONCE = {**CALLS, "reasoning_effort": "none"}
THINKS: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": CONCLUDED_TOKENS}
END_OF_TEXT_ID, END_OF_TURN_ID = 0, 4


# Tools.


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=str)
def test_a_call_is_the_same_streamed_and_whole(thinker: RunningServer, choice: Any) -> None:
    chunks = call_is_the_same_streamed_and_whole(thinker, CALLS_AT_ONCE, choice)
    assert joined(chunks)["reasoning_content"] == ""


def test_a_required_call_comes_without_reasoning_if_no_parser_reads_reasoning(
    thinker: RunningServer,
) -> None:
    answer = create(thinker, **CALLS, tool_choice="required").choices[0]
    assert not hasattr(answer.message, "reasoning_content")
    assert json.loads(answer.message.tool_calls[0].function.arguments)["zone"] in ZONES


def test_a_call_inside_the_reasoning_does_not_count(thinker: RunningServer) -> None:
    answer = create(thinker, **CALLS, max_tokens=100).choices[0]
    assert answer.message.tool_calls is None
    assert "get_time" in answer.message.reasoning_content


def test_a_call_comes_as_it_is_generated(thinker: RunningServer) -> None:
    """vLLM merges tokens that our process takes too late, as it may on a busy machine."""
    for _ in range(NUM_TRIES):
        chunks = create(thinker, **CALLS_AT_ONCE, tool_choice=NAMED, stream=True)
        parts = [chunk for chunk in chunks if chunk.choices[0].delta.tool_calls]
        if len(parts) > 10:
            return
    raise AssertionError(f"calls came in lumps, {NUM_TRIES} times")


def test_every_token_is_counted(thinker: RunningServer) -> None:
    every_token_is_counted(thinker, CALLS_AT_ONCE)


def test_the_model_may_answer_instead(thinker: RunningServer) -> None:
    model_may_answer_instead(thinker, reasoning_effort="none")


def test_the_model_is_shown_the_tools_that_it_may_call(thinker: RunningServer) -> None:
    fields: dict[str, Any] = {"messages": HELLO, "max_tokens": 1}
    allowed = {"mode": "auto", "tools": [NAMED]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}

    def prompt_tokens(**more: Any) -> int:
        return int(create(thinker, **fields, **more).usage.prompt_tokens)

    none = prompt_tokens()
    assert prompt_tokens(tools=BOTH, tool_choice="none") == none
    one = prompt_tokens(tools=BOTH, tool_choice=choice)
    assert none + 50 < one == prompt_tokens(tools=BOTH[:1]) < prompt_tokens(tools=BOTH)


def test_several_calls_and_only_one(thinker: RunningServer) -> None:
    several_calls_and_only_one(thinker, {**CALLS_AT_ONCE, "max_tokens": 200})


def test_a_call_that_is_cut_says_so(thinker: RunningServer) -> None:
    call_that_is_cut_says_so(thinker, CALLS_AT_ONCE, 45)


def test_a_conversation_goes_on_with_what_the_tool_said(thinker: RunningServer) -> None:
    conversation_goes_on_with_what_the_tool_said(thinker, CALLS_AT_ONCE, reasoning_effort="none")


UNBOUND: list[dict[str, Any]] = [
    {"type": 5},
    {"$ref": "http://zqxj.example/schema.json"},
    {"properties": {"a": {"minLength": 5, "maxLength": 2}}},
    {"properties": {"a": {"enum": []}}},
    {"properties": {"a": {"type": "string", "pattern": "^((zqxj{1,100}){1,100}){1,100}$"}}},
    {"properties": {"a": THOUSANDS}, "required": ["a"]},
]


@pytest.mark.parametrize("schema", UNBOUND, ids=str)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_parameters_that_cannot_be_kept_to_are_refused(
    thinker: RunningServer, schema: dict[str, Any], choice: Any
) -> None:
    parameters_are_refused(thinker, schema, tool_choice=choice)


@pytest.mark.parametrize("schema", UNBOUND, ids=str)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_parameters_that_need_not_be_kept_to_are_relaxed_and_the_header_says_so(
    thinker: RunningServer, schema: dict[str, Any], choice: Any
) -> None:
    function = {"name": "f", "parameters": {"type": "object", **schema}}
    body = {"messages": HELLO, "max_tokens": 1, "tool_choice": choice}
    body["tools"] = [{"type": "function", "function": function}]
    answer = ask(thinker.port, post(json.dumps(body).encode(), path=CHAT))
    assert answer.status == 200, answer.body
    assert answer.headers["x-penstock-ignored"] == "tools[].parameters (relaxed)"


@pytest.mark.parametrize("name", LISTS)
def test_the_tools_of_real_servers_are_accepted_whole(thinker: RunningServer, name: str) -> None:
    for choice in ("auto", "required"):
        body = {"messages": HELLO, "tools": LISTS[name], "tool_choice": choice, "max_tokens": 1}
        answer = ask(thinker.port, post(json.dumps(body).encode(), path=CHAT))
        # A list that is longer than the model's context is refused only for its length.
        code = None if answer.status == 200 else answer.json()["error"]["code"]
        assert code in (None, "context_length_exceeded"), answer.body


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}]}}, "properties": {"x": NOTHING}},
        {"properties": {"a": {"type": "string", "pattern": "((((((((a|b)*)*)*)*)*)*)*)*"}}},
        {"properties": {"a": {"type": "number", "minimum": 1e-300, "maximum": 1e-299}}},
        {"properties": {"a\0b": {"enum": ["\0"]}}, "required": ["a\0b"]},
        {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}]},
    ],
    ids=str,
)
def test_odd_parameters_harm_nobody(thinker: RunningServer, schema: dict[str, Any]) -> None:
    engine = core_of(thinker.engine_pid()).pid
    function = {"name": "f", "parameters": {"type": "object", **schema}}
    tools: Any = [{"type": "function", "function": function}]
    fields = {**CALLS_AT_ONCE, "tools": tools, "tool_choice": "required", "max_tokens": 30}
    with contextlib.suppress(openai.BadRequestError):  # a refusal is fine, a failure is not
        assert create(thinker, **fields).usage.completion_tokens > 0
    assert create(thinker, messages=HELLO, max_tokens=1).usage.completion_tokens == 1
    assert core_of(thinker.engine_pid()).pid == engine


TOO_COMPLEX = {"type": "integer", "multipleOf": 10_000_019}
PATIENCE_S = 60.0  # three seconds of the processor, beside a core that never sleeps


def test_a_bomb_is_refused_and_harms_nobody(thinker: RunningServer) -> None:
    engine = core_of(thinker.engine_pid()).pid
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": TOO_COMPLEX}}
    parameters = {"type": "object", "properties": {"a": TOO_COMPLEX}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    bombs: list[dict[str, Any]] = [{"response_format": schema}, {"tools": [tool]}]
    for bomb in bombs:
        body = {"messages": HELLO, "max_tokens": 1, **bomb}
        with Connection(thinker.port, patience=PATIENCE_S) as connection:
            answer = connection.send(post(json.dumps(body).encode(), path=CHAT)).response()
        assert answer.status == 400, answer.body
        error = answer.json()["error"]
        assert (error["code"], error["retry_safe"]) == ("schema_too_complex", False)
    assert create(thinker, messages=HELLO, max_tokens=1).usage.completion_tokens == 1
    assert core_of(thinker.engine_pid()).pid == engine


# Reasoning.


def test_reasoning_is_told_apart_streamed_and_whole(thinker: RunningServer) -> None:
    usage = reasoning_is_told_apart_streamed_and_whole(thinker, THINKS).usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    thought = usage.completion_tokens_details.reasoning_tokens or 0
    assert 5 < thought < usage.completion_tokens - 5


def test_log_probabilities_are_the_answer_s_alone(thinker: RunningServer) -> None:
    answer = create(thinker, **THINKS, logprobs=True).choices[0]
    tokens = "".join(each.token for each in answer.logprobs.content)
    assert tokens.strip() == answer.message.content.strip()


def test_a_model_is_told_not_to_think(thinker: RunningServer) -> None:
    model_is_told_not_to_think(thinker, THINKS)


def test_earlier_reasoning_is_shown_to_the_template(thinker: RunningServer) -> None:
    turn = {"role": "assistant", "content": "Yes.", "reasoning_content": "Is it?"}
    longer = create(thinker, messages=[*HELLO, turn, *HELLO], max_tokens=1).usage.prompt_tokens
    turn["reasoning_content"] = ""
    shorter = create(thinker, messages=[*HELLO, turn, *HELLO], max_tokens=1).usage.prompt_tokens
    assert longer > shorter


@pytest.mark.parametrize("name", ["thinker", "parsed"])
def test_text_under_a_schema_is_the_answer(name: str, request: pytest.FixtureRequest) -> None:
    server: RunningServer = request.getfixturevalue(name)
    schema = {"name": "a", "schema": {"enum": [{"lake": 5}]}}
    asked: Any = {"type": "json_schema", "json_schema": schema}
    message = create(server, **THINKS, response_format=asked).choices[0].message
    assert json.loads(message.content) == {"lake": 5}
    assert not hasattr(message, "reasoning_content")


# With a parser for reasoning.


def thoughtful(server: RunningServer, **fields: Any) -> dict[str, Any]:
    """Return `fields` with a bias that makes the reasoning end.

    Too much bias keeps the reasoning from beginning, too little keeps it from ending.
    """
    for bias in range(3, 40):
        asked = {**fields, "logit_bias": {str(END_OF_THOUGHT_ID): bias}}
        message = create(server, **asked).choices[0].message
        if getattr(message, "reasoning_content", "") and (message.content or message.tool_calls):
            return asked
    pytest.skip("no bias makes this model reason and then answer")


def test_vllm_s_parser_tells_reasoning_apart(parsed: RunningServer) -> None:
    fields = thoughtful(parsed, **THINKS)
    message = create(parsed, **fields).choices[0].message
    streamed = joined(create(parsed, **fields, stream=True))
    assert streamed["reasoning_content"] == message.reasoning_content
    assert streamed["content"] == message.content
    assert "</think>" not in message.reasoning_content


def test_a_required_call_may_follow_reasoning_if_a_parser_reads_reasoning(
    parsed: RunningServer,
) -> None:
    fields = {**CALLS, "tool_choice": "required", "max_tokens": 150}
    fields = thoughtful(parsed, **fields)
    answer = create(parsed, **fields).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    json.loads(call.function.arguments)
    streamed = joined(create(parsed, **fields, stream=True))
    assert streamed["reasoning_content"] == answer.message.reasoning_content
    assert [each[1:] for each in streamed["calls"]] == [
        [call.function.name, call.function.arguments]
    ]


# When the engine dies.


def test_thoughts_and_text_go_on_after_the_engine_s_death_and_a_call_does_not(
    thinker: RunningServer,
) -> None:
    """This is the last test with its server, because it kills vLLM's core."""
    no_end = {str(token_id): -100 for token_id in (END_OF_TEXT_ID, END_OF_TURN_ID)}
    endless = {"messages": HELLO, "temperature": 0, "max_tokens": 300, "stream": True}
    endless |= {"logit_bias": no_end}
    thinking = post(json.dumps(endless).encode(), path=CHAT)
    may_call = {**endless, "reasoning_effort": "none", "tools": BOTH}
    saying = post(json.dumps(may_call).encode(), path=CHAT)
    several = {**CALLS_AT_ONCE, "stream": True, "parallel_tool_calls": True}
    calling = post(json.dumps(several).encode(), path=CHAT)
    wholes = [chunks_of(ask(thinker.port, each).body)[:-1] for each in (thinking, saying)]
    thoughts, text, calls = (begin(thinker, each)[0] for each in (thinking, saying, calling))
    with thoughts, text, calls:
        os.kill(core_of(thinker.engine_pid()).pid, signal.SIGKILL)
        for connection in (thoughts, text, calls):
            connection.socket.settimeout(RESTART_LIMIT_S)
        *_, end = chunks_of(b"data: {}\n\n" + calls.rest())
        assert (end["error"]["code"], end["error"]["retry_safe"]) == ("engine_died", True)
        # Comments are sent while the engine restarts.
        rests = [each.rest().replace(b": ping\n", b"") for each in (thoughts, text)]
    for rest, whole, kind in zip(rests, wholes, ("reasoning_content", "content"), strict=True):
        *chunks, end = chunks_of(b"data: {}\n\n" + rest)[1:]
        assert end["choices"][0]["finish_reason"] == "length"
        assert len(text_of(chunks, kind)) > 100
        assert text_of(whole, kind).endswith(text_of(chunks, kind))


def text_of(chunks: list[dict[str, Any]], kind: str) -> str:
    """Join the text of this kind in the chunks."""
    return "".join(chunk["choices"][0]["delta"].get(kind, "") for chunk in chunks)
