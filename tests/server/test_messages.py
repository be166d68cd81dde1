"""Anthropic's API with Anthropic's own client: answers, tools, thinking, limits and counts."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
import requests

from tests.support.anthropic_wire import (
    COUNT_TOKENS,
    HELLO,
    TIME,
    answer_to,
    client_of,
    create,
    shown,
    streamed,
    types_of,
)
from tests.support.concluding import serve_thinker
from tests.support.raw import ask, request
from tests.support.servers import RunningServer, serve, serve_terse_mock
from tests.support.templates import REASONING

IGNORED, LIMIT = "x-penstock-ignored", "x-penstock-max-tokens"
ADAPTIVE: Any = {"type": "adaptive"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(slots=4, model_name="rill,claude-alias") as running:
        yield running


@pytest.fixture(scope="module")
def thinker() -> Iterator[RunningServer]:
    """A model that thinks in small letters and answers in capitals."""
    with serve_thinker() as running:
        yield running


@pytest.fixture(scope="module")
def mock() -> Iterator[RunningServer]:
    with serve_terse_mock() as running:
        yield running


# Text.


def test_a_message_is_the_same_streamed_and_whole(server: RunningServer) -> None:
    whole = create(server, system="Be brief.", max_tokens=10)
    assert shown(streamed(server, system="Be brief.", max_tokens=10)) == shown(whole)
    assert [block.type for block in whole.content] == ["text"]
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 10
    assert whole.id.startswith("msg_")
    assert whole._request_id


def test_events_come_in_anthropic_s_order(mock: RunningServer) -> None:
    assert types_of(answer_to(mock, stream=True).body) == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_an_empty_answer_has_no_blocks(server: RunningServer) -> None:
    fields: dict[str, Any] = {"stop_sequences": [create(server).content[0].text[0]]}
    message = create(server, **fields)
    assert (message.content, message.stop_reason) == ([], "stop_sequence")
    assert shown(streamed(server, **fields)) == shown(message)


def test_a_stop_sequence_ends_the_answer_and_is_named(mock: RunningServer) -> None:
    for function in (create, streamed):
        message = function(mock, stop_sequences=["hills", " the hi"])
        assert message.content[0].text == " Water comes down from"
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " the hi")
        message = function(mock, stop_sequences=["lake"])
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)


def test_a_begun_answer_goes_on(server: RunningServer) -> None:
    whole = create(server).content[0].text
    begun = whole[: whole.index(" ", 20)]
    turns = [*HELLO, {"role": "assistant", "content": begun}]
    assert whole.startswith(begun + create(server, messages=turns, max_tokens=8).content[0].text)


# Limits.


def test_a_limit_that_does_not_fit_is_cut_and_a_full_context_is_named(mock: RunningServer) -> None:
    answer = answer_to(mock, max_tokens=64000, messages=[{"role": "user", "content": "a " * 45}])
    assert answer.json()["stop_reason"] == "model_context_window_exceeded"
    assert answer.headers[LIMIT] == "4"
    assert answer_to(mock, max_tokens=4).json()["stop_reason"] == "max_tokens"
    assert answer_to(mock, max_tokens=None).json()["stop_reason"] == "end_turn"


def test_a_prompt_that_is_too_long_is_refused_as_claude_code_expects(mock: RunningServer) -> None:
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 99 tokens > 50 max"):
        create(mock, messages=[{"role": "user", "content": "a " * 98 + "b"}])


# Tools.


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_time"}], ids=str)
def test_a_call_is_the_same_streamed_and_whole(server: RunningServer, choice: Any) -> None:
    fields: dict[str, Any] = {"tools": [TIME], "tool_choice": choice, "max_tokens": 200}
    whole = create(server, **fields)
    assert shown(streamed(server, **fields)) == shown(whole)
    (call,) = whole.content
    assert (call.type, call.name) == ("tool_use", "get_time")
    assert call.input["zone"] in ("UTC", "CET")
    assert whole.stop_reason == "tool_use"


def test_a_call_that_is_cut_has_as_much_input_as_is_complete(server: RunningServer) -> None:
    fields: dict[str, Any] = {"tools": [TIME], "tool_choice": {"type": "any"}}
    length = create(server, **fields, max_tokens=200).usage.output_tokens
    message = create(server, **fields, max_tokens=length - 16)
    assert message.stop_reason == "max_tokens"
    assert message.content[0].input == {}
    assert shown(streamed(server, **fields, max_tokens=length - 16)) == shown(message)


def test_the_model_may_answer_instead(server: RunningServer) -> None:
    plain = create(server, max_tokens=3).usage
    for choice in ({"type": "auto"}, {"type": "none"}):
        message = create(server, tools=[TIME], tool_choice=choice, max_tokens=3)
        assert [block.type for block in message.content] == ["text"]
        is_shown = message.usage.input_tokens + message.usage.cache_read_input_tokens > 50
        assert is_shown == (choice["type"] == "auto")
    assert plain.output_tokens == 3


def test_only_one_call_is_made_without_parallel_use(server: RunningServer) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    message = create(server, tools=[TIME], tool_choice=choice, max_tokens=400)
    assert [block.type for block in message.content] == ["tool_use"]
    assert message.stop_reason == "tool_use"


def test_a_conversation_goes_on_with_what_the_tools_said(server: RunningServer) -> None:
    fields: dict[str, Any] = {"tools": [TIME], "max_tokens": 100}
    asked = create(server, **fields, tool_choice={"type": "any"})
    result = {"type": "tool_result", "tool_use_id": asked.content[0].id, "content": "It is noon."}
    blocks = [{**result, "content": [{"type": "text", "text": "It is noon."}]}]

    def length(content: Any) -> int:
        turns = [*HELLO, asked.to_param(), {"role": "user", "content": content}]
        usage = create(server, **{**fields, "max_tokens": 3}, messages=turns).usage
        return int(usage.input_tokens + usage.cache_read_input_tokens)

    assert length([result]) == length(blocks)
    assert length([{**result, "is_error": True}]) > length([result])
    assert length([result, {"type": "text", "text": "And then?"}]) > length([result])


def test_tools_of_anthropic_are_left_out_and_named(server: RunningServer) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    answer = answer_to(server, tools=[search, TIME], tool_choice={"type": "any"}, max_tokens=100)
    assert answer.headers[IGNORED] == "tools[].web_search_20250305"
    assert answer.json()["content"][0]["name"] == "get_time"
    answer = answer_to(server, tools=[search], max_tokens=3)
    assert answer.json()["content"][0]["type"] == "text"
    wrong = answer_to(server, tools=[search], tool_choice={"type": "tool", "name": "web_search"})
    assert (wrong.status, wrong.json()["error"]["param"]) == (400, "tool_choice")


def test_an_engine_without_tools_refuses_them_by_name(mock: RunningServer) -> None:
    error = answer_to(mock, tools=[TIME]).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_field", "tools")


def test_an_answer_follows_a_schema(server: RunningServer) -> None:
    output: Any = {"type": "json_schema", "schema": {"enum": [{"lake": 5}]}}
    message = create(server, output_config={"format": output})
    assert json.loads(message.content[0].text) == {"lake": 5}
    assert create(server, {"output_format": output}).content[0].text == message.content[0].text


# Thinking.


def test_thinking_is_the_same_streamed_and_whole_and_is_taken_back(thinker: RunningServer) -> None:
    whole = create(thinker, thinking=ADAPTIVE)
    assert shown(streamed(thinker, thinking=ADAPTIVE)) == shown(whole)
    thought, text = whole.content
    assert (thought.type, text.type) == ("thinking", "text")
    assert thought.thinking.islower()
    assert text.text.isupper()
    assert thought.signature
    assert 0 < whole.usage.output_tokens_details.thinking_tokens < whole.usage.output_tokens

    def length(*content: Any) -> int:
        turns = [*HELLO, {"role": "assistant", "content": list(content)}, *HELLO]
        usage = create(thinker, messages=turns, max_tokens=1).usage
        return int(usage.input_tokens + usage.cache_read_input_tokens)

    assert length(thought.to_dict(), text.to_dict()) > length(text.to_dict())


def test_omitted_thinking_comes_back_in_its_signature(thinker: RunningServer) -> None:
    omitted: Any = {**ADAPTIVE, "display": "omitted"}
    whole = create(thinker, thinking=omitted)
    assert shown(streamed(thinker, thinking=omitted)) == shown(whole)
    assert whole.content[0].thinking == ""
    seen = create(thinker, thinking=ADAPTIVE).content
    assert whole.content[1].text == seen[1].text
    counts = [
        count(thinker, [*HELLO, {"role": "assistant", "content": [block.to_dict()]}, *HELLO])
        for block in (whole.content[0], seen[0])
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}], ids=str)
def test_a_model_does_not_think_unless_it_is_asked_to(
    thinker: RunningServer, thinking: Any
) -> None:
    fields: dict[str, Any] = {} if thinking is None else {"thinking": thinking}
    message = create(thinker, **fields)
    assert [block.type for block in message.content] == ["text"]
    assert shown(streamed(thinker, **fields)) == shown(message)


def test_a_budget_ends_the_thinking() -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 8}
    with serve(slots=2, engine_arg=[f"chat_template={REASONING}"]) as server:
        message = create(server, thinking=thinking)
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert 8 <= message.usage.output_tokens_details.thinking_tokens <= 12
        fields: dict[str, Any] = {
            "tools": [TIME],
            "tool_choice": {"type": "any"},
            "max_tokens": 300,
        }
        answer = answer_to(server, thinking=thinking, **fields)
        assert answer.status == 200
        assert "thinking_budget (left out)" in answer.headers[IGNORED]


def test_thinking_that_a_model_cannot_do_is_named(
    server: RunningServer, mock: RunningServer
) -> None:
    enabled: Any = {"type": "enabled", "budget_tokens": 2000}
    for where in (server, mock):
        answer = answer_to(where, thinking=enabled, output_config={"effort": "high"})
        assert answer.status == 200
        names = set(answer.headers[IGNORED].split(", "))
        assert names == {"thinking.budget_tokens", "output_config.effort"}


# Counts and names.


def count(server: RunningServer, messages: Any, **fields: Any) -> int:
    with client_of(server) as client:
        return client.messages.count_tokens(model="rill", messages=messages, **fields).input_tokens


def test_a_count_equals_the_usage(server: RunningServer, thinker: RunningServer) -> None:
    call = {"type": "tool_use", "id": "a", "name": "get_time", "input": {"zone": "UTC"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "It is noon."}
    called = [
        *HELLO,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    asked: list[dict[str, Any]] = [
        {"messages": HELLO},
        {"messages": HELLO, "system": "Be brief."},
        {"messages": HELLO, "tools": [TIME]},
        {"messages": called, "tools": [TIME]},
        {"messages": HELLO, "thinking": ADAPTIVE},
    ]
    for where in (server, thinker):
        for fields in asked:
            assert count(where, **fields) == shown(create(where, **fields))["input_tokens"]


def test_a_count_takes_no_slot_and_does_not_wait() -> None:
    arguments = ["slots=1", "hang_at=1", "context_length=50"]
    with (
        serve(engine="mock", mock_interval=0, slots=1, engine_arg=arguments) as server,
        client_of(server) as client,
        client.messages.stream(model="mock", messages=HELLO, max_tokens=9) as stream,
    ):
        next(iter(stream))
        turns: Any = [{"role": "user", "content": "a " * 28 + "b"}]
        counted = client.messages.count_tokens(model="mock", messages=turns)
        assert counted.input_tokens == 29
        turns[0]["content"] *= 3
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            client.messages.count_tokens(model="mock", messages=turns)


def test_names_of_models(server: RunningServer, mock: RunningServer) -> None:
    for name in ("rill", "claude-alias"):
        answer = answer_to(server, model=name, max_tokens=1)
        assert (answer.json()["model"], IGNORED in answer.headers) == (name, False)
        body = {"model": name, "messages": HELLO, "max_tokens": 1}
        chat = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
        assert chat.json()["model"] == name
    answer = answer_to(mock, model="claude-opus-4-8")
    assert (answer.json()["model"], answer.headers[IGNORED]) == ("claude-opus-4-8", "model")
    with pytest.raises(anthropic.NotFoundError):
        create(mock, model="gpt-9")


def test_the_list_of_models_has_anthropic_s_form(server: RunningServer) -> None:
    with client_of(server) as client:
        found = list(client.models.list())
        assert [model.id for model in found] == ["rill", "claude-alias"]
        assert found[0].max_input_tokens == 1024
        assert client.models.retrieve("claude-alias") == found[1]
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.models.retrieve("other")
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index] # JSON
    ours = requests.get(f"{server.url}/v1/models", timeout=30).json()
    assert [model["object"] for model in ours["data"]] == ["model", "model"]
    assert requests.get(f"{server.url}/v1/models/x", timeout=30).json()["error"]["param"] == "model"


def test_any_version_of_anthropic_s_api_is_accepted(server: RunningServer) -> None:
    answer = ask(server.port, request("GET", "/v1/models?limit=1000", "anthropic-version: new"))
    assert answer.json()["first_id"] == "rill"
    headers = ("anthropic-version: 1999-01-01", "anthropic-beta: a,b")
    assert answer_to(server, *headers, path="/v1/messages?beta=true", max_tokens=1).status == 200


def test_a_billing_line_does_not_spoil_the_cache(server: RunningServer) -> None:
    def usage(number: int) -> Any:
        line = f"x-anthropic-billing-header: cc_version=2.1.{number}; cch={number * 7:x};"
        text = "You are kind. " * 20
        blocks = [{"type": "text", "text": line}, {"type": "text", "text": text}]
        answer = answer_to(server, system=blocks, max_tokens=1)
        assert answer.headers[IGNORED] == "system[].x-anthropic-billing-header"
        return answer.json()["usage"]

    usage(1)
    # The first answer's slot may not be free yet. After two answers both slots have the prompt.
    cached = min((usage(number) for number in (2, 3, 4)), key=lambda each: each["input_tokens"])
    assert cached["input_tokens"] == 1  # the engine computes the last one again
    assert cached["cache_read_input_tokens"] > 50
    plain = count(server, HELLO, system="You are kind. " * 20)
    assert plain == cached["input_tokens"] + cached["cache_read_input_tokens"]


def test_counts_name_what_they_left_out(mock: RunningServer) -> None:
    answer = answer_to(mock, path=COUNT_TOKENS, zqxj=1, max_tokens=None)
    assert (answer.json(), answer.headers[IGNORED]) == ({"input_tokens": 1}, "zqxj")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
