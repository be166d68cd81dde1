"""Tools and reasoning with OpenAI's own client, over llama.cpp and templates that support them.

tests/support/templates.py makes the built-in model call tools. Its reasoning ends because llama.cpp
bounds it (`reasoning_budget_tokens`).
"""

import asyncio
import json
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
    ends_of,
    every_token_is_counted,
    joined,
    model_is_told_not_to_think,
    model_may_answer_instead,
    name_of,
    parameters_are_refused,
    reasoning_is_told_apart_streamed_and_whole,
    several_calls_and_only_one,
)
from tests.support.concluding import serve_thinker
from tests.support.dying import mortal
from tests.support.openai_wire import CHAT, RESUMABLE, begin, chunks_of
from tests.support.raw import ask, cancel_stream, frames_of, post, resume
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING, TOOLS
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def caller() -> Iterator[RunningServer]:
    with serve(slots=4, engine_arg=[f"chat_template={TOOLS}"]) as server:
        yield server


@pytest.fixture(scope="module")
def thinker() -> Iterator[RunningServer]:
    arguments = [f"chat_template={REASONING}", "sampling.reasoning_budget_tokens=8"]
    with serve(slots=4, engine_arg=arguments) as server:
        yield server


@pytest.fixture(scope="module")
def concluding() -> Iterator[RunningServer]:
    with serve_thinker() as server:
        yield server


# Tools.


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=str)
def test_a_call_is_the_same_streamed_and_whole(caller: RunningServer, choice: Any) -> None:
    chunks = call_is_the_same_streamed_and_whole(caller, CALLS, choice)
    assert len(chunks) > 5  # the call is streamed as it is generated


@pytest.mark.parametrize("choice", ["required", NAMED], ids=str)
def test_a_required_call_is_made_whatever_the_model_would_say(
    caller: RunningServer, choice: Any
) -> None:
    unbiased = {name: value for name, value in CALLS.items() if name != "logit_bias"}
    for seed in range(4):
        fields = {**unbiased, "tool_choice": choice, "temperature": 1, "seed": seed}
        answer = create(caller, **fields).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        (call,) = answer.message.tool_calls
        properties = {"get_weather": {"city", "days"}, "get_time": {"zone"}}
        assert set(json.loads(call.function.arguments)) == properties[call.function.name]
        assert choice != NAMED or call.function.name == "get_weather"


def test_every_token_is_counted(caller: RunningServer) -> None:
    every_token_is_counted(caller, {**CALLS, "max_tokens": 200})


def test_the_model_may_answer_instead(caller: RunningServer) -> None:
    model_may_answer_instead(caller)


def test_a_model_that_may_not_call_is_shown_no_tools(caller: RunningServer) -> None:
    fields: dict[str, Any] = {"messages": HELLO, "max_tokens": 1}
    plain = create(caller, **fields).usage.prompt_tokens
    assert create(caller, **fields, tools=BOTH, tool_choice="none").usage.prompt_tokens == plain
    assert create(caller, **fields, tools=BOTH).usage.prompt_tokens > plain + 50


def test_several_calls_and_only_one(caller: RunningServer) -> None:
    several_calls_and_only_one(caller, {**CALLS, "max_tokens": 300})


def test_a_call_that_is_cut_says_so(caller: RunningServer) -> None:
    call_that_is_cut_says_so(caller, CALLS, 60)


def test_a_conversation_goes_on_with_what_the_tool_said(caller: RunningServer) -> None:
    conversation_goes_on_with_what_the_tool_said(caller, CALLS)


def test_stop_strings_end_the_text_and_no_call(caller: RunningServer) -> None:
    assert create(caller, **CALLS, stop=["zone", "{"]).choices[0].finish_reason == "tool_calls"
    text = create(caller, messages=HELLO, tools=BOTH, temperature=0, max_tokens=20)
    words = text.choices[0].message.content.split()
    cut = create(caller, messages=HELLO, tools=BOTH, temperature=0, max_tokens=20, stop=[words[3]])
    assert cut.choices[0].finish_reason == "stop"
    assert words[3] not in cut.choices[0].message.content


def test_each_choice_calls_for_itself(caller: RunningServer) -> None:
    chunks = create(caller, **CALLS, n=3, stream=True)
    messages = [joined(chunks, index) for index in range(3)]
    assert ends_of(chunks) == [(index, "tool_calls") for index in range(3)]
    assert len({message["calls"][0][0] for message in messages}) == 3
    assert len({message["calls"][0][2] for message in messages}) == 1


async def test_the_async_client_s_helper_puts_calls_together(caller: RunningServer) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{caller.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:

        async def call() -> Any:
            async with client.chat.completions.stream(model=name_of(caller), **CALLS) as stream:
                return await stream.get_final_completion()

        answers = await asyncio.gather(*(call() for _ in range(4)))
    for answer in answers:
        (called,) = answer.choices[0].message.tool_calls
        assert json.loads(called.function.arguments)["zone"] in ZONES


def test_a_call_is_resumed_byte_for_byte(caller: RunningServer) -> None:
    body = {**CALLS, "stream": True, "stream_options": {"include_usage": True}}
    answer = ask(caller.port, post(json.dumps(body).encode(), RESUMABLE, path=CHAT))
    frames = frames_of(answer.body)
    assert b'"tool_calls"' in frames[0]
    for last in range(len(frames) - 1):
        rest = resume(caller.port, answer.headers["x-stream-id"], f"Last-Event-ID: {last}")
        assert frames_of(rest.body) == frames[last + 1 :]


def test_a_call_can_be_cancelled() -> None:
    """At full speed the answer fills the context within a second: it may be over too early."""
    body = {**CALLS, "stream": True, "parallel_tool_calls": True}
    with serve(slots=1, pace=30, engine_arg=[f"chat_template={TOOLS}"]) as server:
        connection, stream_id = begin(server, post(json.dumps(body).encode(), path=CHAT))
        with connection:
            cancel_stream(server.port, stream_id)
            *_, end = chunks_of(b"data: {}\n\n" + connection.rest())
    assert end["choices"][0]["finish_reason"] == "length"
    assert end["choices"][0]["stop_reason"] == "cancelled"


def test_a_call_is_not_continued_after_the_engine_s_death_and_may_be_asked_for_again(
    tmp_path: Path,
) -> None:
    body = json.dumps({**CALLS, "stream": True, "parallel_tool_calls": True}).encode()
    with mortal(tmp_path, f"chat_template={TOOLS}") as server:
        *_, end = chunks_of(server.cut_off(post(body, path=CHAT)).body)
        assert end["error"]["code"] == "engine_died"
        assert end["error"]["retry_safe"] is True
        plain = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
        assert eventually(lambda: server.undisturbed(post(plain, path=CHAT)).status == 200, 20)


@pytest.mark.parametrize(("template", "after"), [(TOOLS, 20), (REASONING, 4), (REASONING, 20)])
def test_text_without_a_call_continues_after_the_engine_s_death(
    tmp_path: Path, template: str, after: int
) -> None:
    story = [{"role": "user", "content": "Tell me a story."}]
    body = {"messages": story, "tools": BOTH, "temperature": 0, "max_tokens": 50}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    sent = post(json.dumps(body).encode(), path=CHAT)
    arguments = [f"chat_template={template}", "sampling.reasoning_budget_tokens=8"]
    with mortal(tmp_path, *arguments, after=after) as server:
        whole = chunks_of(server.undisturbed(sent).body)
        *cut, usage = chunks_of(server.cut_off(sent).body)
    pieces = [each["choices"][0]["delta"] for each in cut]
    num_sure = after // 2  # some tokens have no text
    assert pieces[:num_sure] == [each["choices"][0]["delta"] for each in whole[:num_sure]]
    assert len(pieces) > after
    assert cut[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert after < usage["usage"]["completion_tokens"] <= 50


UNBOUND: list[dict[str, Any]] = [
    {"type": 5},
    {"$ref": "http://zqxj.example/schema.json"},
    {"properties": {"a": {"minLength": 5, "maxLength": 2}}},  # would hang llama.cpp
    {"properties": {"a": {"type": "string", "maxLength": 100_000}}},
    {"properties": {"a": {"type": "string", "pattern": "^((zqxj{1,100}){1,100}){1,100}$"}}},
]


@pytest.mark.parametrize("schema", UNBOUND, ids=str)
def test_parameters_that_cannot_be_kept_to_are_refused(
    caller: RunningServer, schema: dict[str, Any]
) -> None:
    parameters_are_refused(caller, schema)


@pytest.mark.parametrize("schema", UNBOUND, ids=str)
def test_parameters_that_need_not_be_kept_to_are_relaxed_and_the_header_says_so(
    caller: RunningServer, schema: dict[str, Any]
) -> None:
    function = {"name": "f", "parameters": {"type": "object", **schema}}
    body = {**CALLS, "max_tokens": 1, "tools": [{"type": "function", "function": function}]}
    answer = ask(caller.port, post(json.dumps(body).encode(), path=CHAT))
    assert answer.status == 200
    assert answer.headers["x-penstock-ignored"] == "tools[].parameters (relaxed)"


def test_a_schema_that_need_not_be_kept_to_is_relaxed_and_the_header_says_so(
    caller: RunningServer,
) -> None:
    schema: dict[str, Any] = {"type": "array", "uniqueItems": True, "items": {"const": "lake"}}
    schema |= {"minItems": 1, "maxItems": 2}
    for strict in (None, False, True):
        named = {"name": "a", "schema": schema, "strict": strict}
        form = {"type": "json_schema", "json_schema": named}
        body = {"messages": HELLO, "response_format": form}
        answer = ask(caller.port, post(json.dumps(body).encode(), path=CHAT))
        if strict:
            assert answer.json()["error"]["code"] == "invalid_schema"
            continue
        assert answer.headers["x-penstock-ignored"] == "response_format (relaxed)"
        assert "lake" in json.loads(answer.json()["choices"][0]["message"]["content"])


def test_an_engine_without_tools_refuses_them_by_name() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked: Any = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with serve("--strict", engine="mock") as server:
        for name, fields in (
            ("tools", {"messages": HELLO, "tools": BOTH}),
            ("messages", {"messages": asked}),
            ("reasoning_effort", {"messages": HELLO, "reasoning_effort": "high"}),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                create(server, **fields)
            assert (refused.value.code, refused.value.param) == ("unsupported_field", name)


# Reasoning.

THINKS: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 40}


def test_reasoning_is_told_apart_streamed_and_whole(concluding: RunningServer) -> None:
    whole = reasoning_is_told_apart_streamed_and_whole(concluding, THINKS)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40
    details = whole.usage.completion_tokens_details
    assert details is not None
    assert 0 < (details.reasoning_tokens or 0) < 40
    assert not (whole.choices[0].message.content or " ")[0].isspace()


def test_log_probabilities_are_the_answer_s_alone(concluding: RunningServer) -> None:
    answer = create(concluding, **THINKS, logprobs=True).choices[0]
    tokens = "".join(each.token for each in answer.logprobs.content)
    assert tokens.strip() == answer.message.content


def test_reasoning_is_resumed_byte_for_byte(concluding: RunningServer) -> None:
    body = json.dumps({**THINKS, "stream": True}).encode()
    answer = ask(concluding.port, post(body, RESUMABLE, path=CHAT))
    frames = frames_of(answer.body)
    for last in (0, len(frames) // 2, len(frames) - 2):
        rest = resume(concluding.port, answer.headers["x-stream-id"], f"Last-Event-ID: {last}")
        assert frames_of(rest.body) == frames[last + 1 :]


def test_reasoning_comes_before_a_call(thinker: RunningServer) -> None:
    answer = create(thinker, **CALLS, max_tokens=200).choices[0]
    assert answer.message.reasoning_content
    assert answer.message.tool_calls[0].function.name == "get_time"
    message = joined(create(thinker, **CALLS, max_tokens=200, stream=True))
    assert message["reasoning_content"] == answer.message.reasoning_content
    assert len(message["calls"]) == 1
    turn = {**answer.message.to_dict(), "tool_calls": None, "content": "Yes."}
    longer = create(thinker, messages=[*HELLO, turn, *HELLO], max_tokens=1).usage.prompt_tokens
    turn["reasoning_content"] = None
    assert longer > create(thinker, messages=[*HELLO, turn, *HELLO]).usage.prompt_tokens


def test_a_model_is_told_not_to_think(thinker: RunningServer) -> None:
    model_is_told_not_to_think(thinker, THINKS)


def test_text_under_a_schema_is_the_answer_and_not_reasoning(thinker: RunningServer) -> None:
    schema = {"name": "a", "schema": {"enum": [{"lake": 5}]}}
    asked: Any = {"type": "json_schema", "json_schema": schema}
    message = create(thinker, **THINKS, response_format=asked).choices[0].message
    assert json.loads(message.content) == {"lake": 5}


def test_thoughts_go_on_after_the_engine_s_death(tmp_path: Path) -> None:
    never_ends = {"0": -100, "4": -100}
    # Longer thoughts may meet a near tie.
    fields = {**THINKS, "stream": True, "max_tokens": 60, "logit_bias": never_ends}
    body = post(json.dumps(fields).encode(), path=CHAT)
    with mortal(tmp_path, f"chat_template={REASONING}") as server:
        expected = chunks_of(server.undisturbed(body).body)
        chunks = chunks_of(server.cut_off(body).body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert all([*delta][-1] == "reasoning_content" for delta in deltas)
    text = "".join(delta["reasoning_content"] for delta in deltas)
    whole = "".join(chunk["choices"][0]["delta"]["reasoning_content"] for chunk in expected[:-1])
    assert text == whole
    assert chunks[-1] == {**expected[-1], "id": chunks[-1]["id"], "created": chunks[-1]["created"]}
