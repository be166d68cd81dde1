"""Tools over vLLM in Penstock's own form: rill's chat template has no place for tools.

The test that kills the engine comes last. tests/vllm/test_conformance.py continues other answers.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.calling import (
    ASKED,
    BOTH,
    HELLO,
    MUST_CALL,
    NAMED,
    NEVER_ENDS,
    ZONES,
    call_is_the_same_streamed_and_whole,
    call_that_is_cut_says_so,
    conversation_goes_on_with_what_the_tool_said,
    create,
    every_token_is_counted,
    model_may_answer_instead,
    several_calls_have_their_own_ids,
)
from tests.support.openai_wire import CHAT, begin, chunks_of
from tests.support.raw import ask, post
from tests.support.servers import RunningServer, serve
from tests.vllm.engines import SLOTS, core_of, engine_args

RESTART_LIMIT_S = 600  # beside other work on two cores
LAKES = {"type": "object", "properties": {"lake": {"enum": ["Como", "Garda"]}}}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "lake", "schema": LAKES}}


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    arguments = [f"{name}={json.dumps(value)}" for name, value in engine_args().items()]
    with serve(
        engine="vllm",
        model=models / "rill",
        slots=SLOTS,
        engine_arg=arguments,
        engine_restart_timeout=RESTART_LIMIT_S,
    ) as running:
        yield running


def test_a_required_or_named_call_is_made_streamed_and_whole(server: RunningServer) -> None:
    assert len(call_is_the_same_streamed_and_whole(server, ASKED, "required")) > 3
    call_is_the_same_streamed_and_whole(server, {**ASKED, "tools": BOTH}, NAMED)


def test_every_token_is_counted(server: RunningServer) -> None:
    every_token_is_counted(server, MUST_CALL)


def test_the_model_may_answer_instead(server: RunningServer) -> None:
    model_may_answer_instead(server)


def test_a_call_that_is_cut_says_so(server: RunningServer) -> None:
    whole = create(server, **MUST_CALL).usage.completion_tokens
    call_that_is_cut_says_so(server, MUST_CALL, whole - 8)


def test_a_conversation_goes_on_with_what_the_tool_said(server: RunningServer) -> None:
    conversation_goes_on_with_what_the_tool_said(server, MUST_CALL)


def test_several_calls_have_their_own_ids(server: RunningServer) -> None:
    several_calls_have_their_own_ids(server, {**MUST_CALL, "max_tokens": 150})


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_an_answer_is_a_call_or_follows_the_schema(server: RunningServer, choice: str) -> None:
    for seed in range(3):
        fields = {**ASKED, "tool_choice": choice, "response_format": FORM, "temperature": 1}
        answer = create(server, **fields, seed=seed).choices[0]
        if answer.finish_reason == "tool_calls":
            (call,) = answer.message.tool_calls
            assert json.loads(call.function.arguments)["zone"] in ZONES
            assert answer.message.content is None
        else:
            assert choice == "auto"
            assert set(json.loads(answer.message.content)) <= {"lake"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 5},
        {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3, "uniqueItems": True},
        {"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]},
    ],
    ids=["multipleOf", "uniqueItems", "allOf"],
)
def test_a_schema_that_is_bound_in_part_is_refused_or_named(
    server: RunningServer, schema: dict[str, Any]
) -> None:
    for strict in (True, False):
        asked = {"name": "it", "schema": schema, "strict": strict}
        body = {
            "messages": HELLO,
            "max_tokens": 8,
            "response_format": {"type": "json_schema", "json_schema": asked},
        }
        answer = ask(server.port, post(json.dumps(body).encode(), path=CHAT))
        if strict:
            error = answer.json()["error"]
            assert (answer.status, error["code"]) == (400, "invalid_schema")
            assert "cannot enforce this schema" in error["message"]
            assert answer.headers["x-should-retry"] == "false"
        else:
            assert answer.status == 200, answer.body
            assert answer.headers["x-penstock-ignored"] == "response_format (relaxed)"


def test_a_schema_beside_tools_is_refused_or_relaxed_as_such(server: RunningServer) -> None:
    """xgrammar does not bind multiples, and vLLM's structural tags are xgrammar's."""
    schema = {"type": "integer", "multipleOf": 5}
    for strict in (True, False):
        asked = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        asked["json_schema"]["strict"] = strict  # type: ignore[index]
        body = {**MUST_CALL, "response_format": asked}
        answer = ask(server.port, post(json.dumps(body).encode(), path=CHAT))
        if strict:
            assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_schema")
        else:
            assert answer.status == 200, answer.body
            assert answer.headers["x-penstock-ignored"] == "response_format (relaxed)"


def test_names_and_values_have_signs_of_any_kind(server: RunningServer) -> None:
    for name in ("x" * 256, "mcp: server/tool.v1", "wéather 🌊"):
        tool = {"type": "function", "function": {"name": name}}
        (call,) = (
            create(server, **{**ASKED, "tools": [tool], "tool_choice": tool})
            .choices[0]
            .message.tool_calls
        )
        assert call.function.name == name
    for text in ("a <|user|> b", "<|system|>", "<tool_call> é </tool_call>"):
        tool = {"type": "object", "properties": {text: {"enum": [text]}}, "required": [text]}
        functions = [{"type": "function", "function": {"name": "f", "parameters": tool}}]
        (call,) = create(server, **{**MUST_CALL, "tools": functions}).choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {text: text}


def test_the_prompt_is_shown_as_the_model_sees_it(server: RunningServer) -> None:
    def posted(path: str, **fields: Any) -> Any:
        answer = ask(server.port, post(json.dumps(fields).encode(), path=path))
        assert answer.status == 200, answer.body
        assert "x-penstock-ignored" not in answer.headers
        return answer.json()

    text = "The wheel's 12 é\n"
    ids = posted("/tokenize", content=text)["tokens"]
    assert posted("/detokenize", tokens=ids) == {"content": text, "prompt": text}
    begun = posted("/tokenize", prompt=text)["tokens"]
    assert begun[-len(ids) :] == ids
    shown = posted("/apply-template", messages=HELLO)["prompt"]
    asked = posted("/tokenize", messages=HELLO)["tokens"]
    assert "<|user|>Hello<|end|>" in shown
    assert posted("/detokenize", tokens=asked)["content"] == shown
    # A text that looks like a control token stays text.
    hostile = [{"role": "user", "content": "<|user|>"}]
    assert posted("/apply-template", messages=hostile)["prompt"].count("<|user|>") == 2
    assert len(posted("/tokenize", messages=hostile)["tokens"]) > len(asked) + 1
    with_tools = posted("/apply-template", messages=HELLO, tools=BOTH)["prompt"]
    assert "<tools>" in with_tools
    assert "get_weather" in with_tools


# The engine's death.


def test_text_goes_on_after_the_engine_s_death_and_a_call_does_not(server: RunningServer) -> None:
    """This is the last test with its server, because it kills vLLM's core."""
    saying = {**ASKED, "max_tokens": 300, "logit_bias": NEVER_ENDS, "stream": True}
    tool = {"type": "object", "properties": {"s": {"type": "string", "minLength": 500}}}
    function = {"name": "f", "parameters": {**tool, "required": ["s"]}}
    calling = {**MUST_CALL, "tools": [{"type": "function", "function": function}], "stream": True}
    said, called = (post(json.dumps(each).encode(), path=CHAT) for each in (saying, calling))
    whole = chunks_of(ask(server.port, said).body)[:-1]
    text, calls = begin(server, said)[0], begin(server, called)[0]
    with text, calls:
        os.kill(core_of(server.engine_pid()).pid, signal.SIGKILL)
        for connection in (text, calls):
            connection.socket.settimeout(RESTART_LIMIT_S)
        *_, end = chunks_of(b"data: {}\n\n" + calls.rest())
        assert (end["error"]["code"], end["error"]["retry_safe"]) == ("engine_died", True)
        rest = text.rest().replace(b": ping\n", b"")  # sent while the engine restarts
    *chunks, end = chunks_of(b"data: {}\n\n" + rest)[1:]
    assert end["choices"][0]["finish_reason"] == "length"
    assert len(text_of(chunks)) > 100
    assert text_of(whole).endswith(text_of(chunks))


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
