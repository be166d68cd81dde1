"""Odd but plausible bodies are answered or refused in a sentence: never a 5xx, never half read."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.openai_wire import COMPLETIONS
from tests.support.raw import ask, post
from tests.support.servers import RunningServer, serve

HI = {"role": "user", "content": "Hi"}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
IMAGE = {"type": "image_url", "image_url": []}
CUT_CALL = {"id": 5, "function": {"name": 5, "arguments": "[1"}}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server of the built-in model, which has a chat template and grammars."""
    with serve() as server:
        yield server
        assert "Traceback" not in "".join(server.output)


def called_with(parameters: object) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [fields, HI]}


Row = tuple[dict[str, Any], int]
CHATS: list[Row] = [
    (turn(role="tool", content="x"), 200),
    (turn(role="function", name="f", content="x"), 200),
    (turn(role="assistant", content=None), 200),
    (turn(role="assistant", tool_calls=[CUT_CALL]), 200),
    (turn(role="assistant", function_call={"name": "f", "arguments": "{"}), 200),
    (turn(role="user", content=[]), 200),
    (turn(role="model", content="x"), 400),
    (turn(role=["user"], content="x"), 400),
    (turn(role="user", content=[IMAGE]), 400),
    (turn(role="user", content=[None]), 400),
    (turn(role="user", content=[{"type": {}, "text": "a"}]), 400),
    (called_with({"type": "string"}), 200),
    (called_with({"type": 5}), 200),
    (called_with({"$ref": "#"}), 200),
    (called_with({"type": "object", "properties": []}), 200),
    (called_with(True), 400),
    ({"tools": [TOOL], "tool_choice": {}}, 200),
    ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, 200),
    ({"tools": [TOOL, TOOL]}, 400),
    ({"tools": [], "tool_choice": "none"}, 200),
    ({"functions": [FUNCTION]}, 200),
    ({"functions": [FUNCTION], "function_call": {"name": "f"}}, 200),
    ({"functions": [FUNCTION, FUNCTION]}, 400),
    ({"functions": [], "function_call": "none"}, 200),
    ({"function_call": "auto"}, 200),
    ({"max_tokens": 2.0}, 200),
    ({"max_tokens": "2"}, 200),
    ({"max_tokens": 10**30}, 400),
    ({"n": 1.0}, 200),
    ({"temperature": "nan"}, 400),
    ({"top_k": 1e9}, 200),
    ({"stop": ["", ""]}, 200),
    ({"stop": ["a"] * 10}, 200),
    ({"stop": {"a": 1}}, 400),
    ({"metadata": [1]}, 200),
    ({"user": {"id": 1}}, 200),
    ({"service_tier": 5}, 200),
    ({"modalities": ["text", "audio"]}, 400),
    ({"web_search_options": {}}, 400),
    ({"logit_bias": {"5": "1"}}, 200),
    ({"logit_bias": {"5": False}}, 400),
    ({"stream_options": {"include_usage": True}}, 200),
    ({"response_format": {"type": "text", "strict": True}}, 200),
    ({"response_format": {"type": "json_schema"}}, 400),
    ({"response_format": "json_object"}, 400),
    ({"grammar": "root ::= root"}, 400),
    ({"model": ["rill"]}, 400),
]
RESPONSES: list[Row] = [
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400),
    ({"input": [{"type": "mcp_call"}, HI]}, 200),
    ({"input": [{"type": "function_call", "name": "f", "arguments": 5}, HI]}, 200),
    ({"input": [{"type": "function_call_output", "output": {"a": 1}}, HI]}, 200),
    ({"input": [{"type": 5}]}, 400),
    ({"input": ""}, 200),
    ({"tools": [{"type": "web_search"}]}, 200),
    ({"tools": [None]}, 400),
    ({"tools": [{"type": "custom", "name": "c", "format": {"type": "x"}}]}, 200),
    ({"previous_response_id": ""}, 200),
    ({"text": {"format": None, "verbosity": 5}}, 200),
    ({"reasoning": {"effort": "", "summary": "auto"}}, 200),
    ({"instructions": [HI]}, 400),
    ({"truncation": "auto"}, 200),
]
MESSAGES: list[Row] = [
    (turn(role="user", content=[{"type": "tool_result"}]), 200),
    (turn(role="assistant", content=[{"type": "server_tool_use", "id": "x"}]), 200),
    (turn(role="assistant", content=[{"type": "thinking"}]), 200),
    (turn(role="user", content=[{"type": "document", "source": "x"}]), 400),
    (turn(role="user", content=[{"type": "image", "source": {"type": "base64"}}]), 400),
    ({"system": [{"type": "text", "text": "a", "cache_control": {}}, "b"]}, 200),
    ({"system": 5}, 400),
    ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, 200),
    ({"tools": [{"name": "f", "input_schema": {}, "type": "", "strict": ""}]}, 200),
    ({"tools": [{"name": "f"}]}, 400),
    ({"thinking": {}}, 200),
    ({"thinking": True}, 400),
    ({"mcp_servers": [{"type": "url"}], "container": {"skills": []}}, 200),
    ({"stop_sequences": [""]}, 200),
    ({"max_tokens": "2"}, 200),
]
OLLAMA: list[Row] = [
    (turn(role="user", content="a", images=[]), 200),
    (turn(role="user", content="a", images=["x"]), 400),
    (turn(role="tool", content="x", tool_name="nobody"), 200),
    ({"options": {"num_predict": "2", "mystery": 5, "num_ctx": "2048"}}, 200),
    ({"keep_alive": {"a": 1}}, 200),
    ({"format": ""}, 200),
    ({"format": "xml"}, 400),
    ({"think": ""}, 200),
    ({"think": "max"}, 400),
    ({"tools": [{"function": FUNCTION}]}, 200),
    ({"tools": [FUNCTION]}, 400),
]
ASKED: dict[str, tuple[dict[str, Any], list[Row]]] = {
    "/v1/chat/completions": ({"messages": [HI], "max_tokens": 2}, CHATS),
    "/v1/responses": ({"input": "Hi", "max_output_tokens": 2}, RESPONSES),
    "/v1/messages": ({"messages": [HI], "max_tokens": 2}, MESSAGES),
    "/api/chat": (
        {"model": "rill", "messages": [HI], "stream": False, "options": {"num_predict": 2}},
        OLLAMA,
    ),
}


@pytest.mark.parametrize("path", ASKED)
def test_an_odd_body_is_answered_or_refused_in_a_sentence(server: RunningServer, path: str) -> None:
    usual, rows = ASKED[path]
    got = []
    for fields, status in rows:
        answer = ask(server.port, post(json.dumps({**usual, **fields}).encode(), path=path))
        got.append((fields, answer.status))
        if status == 400:
            assert answer.headers["x-should-retry"] == "false"
    assert got == rows


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {"65": 100}},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"repetition_penalty": 5.0},
        {"min_p": 0.5, "temperature": 1.0, "seed": 7},
        {"min_tokens": 20, "ignore_eos": True},
        {"logit_bias": {"65": 100}, "stop_token_ids": [65]},
    ],
    ids=str,
)
def test_the_native_api_samples_as_openai_s_does(
    server: RunningServer, fields: dict[str, Any]
) -> None:
    usual = {"prompt": "Once", "max_tokens": 20, "temperature": 0.0, "top_p": 1.0, "top_k": -1}
    # The prompt is cached for both, so near ties end alike.
    ask(server.port, post(json.dumps({**usual, "max_tokens": 1}).encode()))
    body = json.dumps({**usual, **fields, "stream": False}).encode()
    native, of_openai = (
        ask(server.port, post(body, path=path)) for path in ("/generate", COMPLETIONS)
    )
    assert (native.status, of_openai.status) == (200, 200), native.body
    assert native.json()["text"] == of_openai.json()["choices"][0]["text"]
    assert "x-penstock-ignored" not in native.headers


def test_the_native_api_refuses_what_the_engine_cannot_do() -> None:
    with serve(engine="mock", mock_interval=0) as server:
        for field, value in [("min_p", 0.5), ("logit_bias", {"1": 1}), ("presence_penalty", 1)]:
            answer = ask(server.port, post(json.dumps({"prompt": "a", field: value}).encode()))
            assert (answer.status, answer.json()["code"]) == (422, "unsupported_field")
            assert answer.json()["errors"][0]["field"] == field


def test_a_stream_takes_numbers_as_strings(server: RunningServer) -> None:
    """Programs that build bodies from forms send every value as text."""
    fields = {"prompt": "Once", "max_tokens": "3", "temperature": "0", "stream": "false"}
    answer = ask(server.port, post(json.dumps(fields).encode()))
    assert answer.json()["usage"]["completion_tokens"] == 3
