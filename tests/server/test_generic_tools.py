"""Tools with the built-in model, whose chat template has no place for them."""

import json
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
from tests.support.dying import mortal
from tests.support.openai_wire import CHAT, RESUMABLE, chunks_of
from tests.support.raw import ask, frames_of, post, resume
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING, TOOLS
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(slots=4) as running:
        yield running


def test_a_call_is_the_same_streamed_and_whole(server: RunningServer) -> None:
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
    several_calls_have_their_own_ids(server, MUST_CALL)


def test_a_model_that_reasons_does_so_before_a_required_call() -> None:
    arguments = [f"chat_template={REASONING}"]
    fields = {**MUST_CALL, "logit_bias": {"0": -100}, "max_tokens": 600}
    with serve(slots=1, engine_arg=arguments) as server:
        answer = create(server, **fields).choices[0]
    assert answer.message.reasoning_content
    if answer.finish_reason == "tool_calls":
        assert answer.message.content is None
    else:
        assert answer.message.tool_calls is None  # it has thought all the time


FORM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "lake",
        "schema": {"type": "object", "properties": {"lake": {"enum": ["Como", "Garda"]}}},
    },
}


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


def test_a_name_may_have_256_characters_and_signs_of_any_kind(server: RunningServer) -> None:
    for name in ("x" * 256, "mcp: server/tool.v1", "wéather 🌊"):
        tool = {"type": "function", "function": {"name": name}}
        fields = {**ASKED, "tools": [tool], "tool_choice": tool}
        (call,) = create(server, **fields).choices[0].message.tool_calls
        assert call.function.name == name


@pytest.mark.parametrize("template", ["", f"chat_template={TOOLS}"], ids=["plain", "caller"])
def test_the_text_of_a_control_token_is_spelled_out(template: str) -> None:
    with serve(slots=1, engine_arg=[template] if template else []) as server:
        for text in ("a <|user|> b", "<|system|>", "<|end|>", "<tool_call> é </tool_call>"):
            tool = {"type": "object", "properties": {text: {"enum": [text]}}, "required": [text]}
            functions = [{"type": "function", "function": {"name": "f", "parameters": tool}}]
            answer = create(server, **{**MUST_CALL, "tools": functions}).choices[0]
            (call,) = answer.message.tool_calls
            assert json.loads(call.function.arguments) == {text: text}
            for bond in (
                {"structured_outputs": {"json": {"const": text}}},
                {"structured_outputs": {"choice": [json.dumps(text, ensure_ascii=False)]}},
            ):
                answer = create(server, messages=HELLO, extra_body=bond, temperature=0).choices[0]
                assert json.loads(answer.message.content) == text


def test_a_call_is_resumed_byte_for_byte(server: RunningServer) -> None:
    answer = ask(
        server.port, post(json.dumps({**MUST_CALL, "stream": True}).encode(), RESUMABLE, path=CHAT)
    )
    frames = frames_of(answer.body)
    for last in range(len(frames) - 1):
        rest = resume(server.port, answer.headers["x-stream-id"], f"Last-Event-ID: {last}")
        assert frames_of(rest.body) == frames[last + 1 :]


# The engine's death.


def test_text_goes_on_after_the_engine_s_death(tmp_path: Path) -> None:
    # A longer text may meet a near tie.
    fields = {**ASKED, "stream": True, "max_tokens": 60, "logit_bias": NEVER_ENDS}
    body = post(json.dumps(fields).encode(), path=CHAT)
    with mortal(tmp_path) as server:
        expected = chunks_of(server.undisturbed(body).body)
        chunks = chunks_of(server.cut_off(body).body)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    whole = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in expected)
    assert text
    assert text == whole
    assert chunks[-1]["choices"] == expected[-1]["choices"]


def test_a_call_that_was_shown_is_not_continued_and_may_be_asked_for_again(tmp_path: Path) -> None:
    tool = {"type": "object", "properties": {"s": {"type": "string", "minLength": 500}}}
    function = {"name": "f", "parameters": {**tool, "required": ["s"]}}
    fields = {**MUST_CALL, "tools": [{"type": "function", "function": function}], "stream": True}
    with mortal(tmp_path, after=50) as server:
        *_, end = chunks_of(server.cut_off(post(json.dumps(fields).encode(), path=CHAT)).body)
        assert end["error"]["code"] == "engine_died"
        assert end["error"]["retry_safe"] is True
        plain = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
        assert eventually(lambda: server.undisturbed(post(plain, path=CHAT)).status == 200, 20)
