"""The input and the tools of a response, without a server."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.openai.responses.fields import parse_response
from penstock.api.openai.responses.items import read_items, sealed, unsealed
from penstock.api.openai.responses.tools import InputText, read_tools
from penstock.api.tolerance import Notes
from penstock.errors import InvalidFields
from penstock.request import Message, ToolUse

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FUNCTION: dict[str, Any] = {"type": "function", "name": "look", "parameters": {"type": "object"}}
CUSTOM: dict[str, Any] = {"type": "custom", "name": "say", "description": "Says it."}


@given(TEXTS, st.booleans(), st.integers(1, 7))
def test_a_custom_tool_s_input_is_found_wherever_its_arguments_are_split(
    text: str, ascii_only: bool, size: int
) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    found = InputText()
    pieces = [arguments[i : i + size] for i in range(0, len(arguments), size)]
    assert "".join(found.feed(piece) for piece in pieces) == text


@given(TEXTS)
def test_sealed_reasoning_comes_back(text: str) -> None:
    assert unsealed(sealed(text)) == text


@pytest.mark.parametrize("content", [None, 5, "", "zqxj", "gAAAAAB", "cGVuc3RvY2s=", sealed("")])
def test_reasoning_that_another_server_sealed_is_nothing(content: object) -> None:
    assert unsealed(content) == ""


def read(*items: dict[str, Any]) -> list[Message]:
    return read_items(list(items), Notes(), lambda _: None)


def test_reasoning_text_and_calls_form_one_turn() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'}
    assert read(
        {"role": "developer", "content": "Be nice."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": sealed("Hm.")},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
        call,
        {"type": "custom_tool_call", "call_id": "c2", "name": "say", "input": 'a"b'},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "2"}],
        },
    ) == [
        Message("system", "Be nice."),
        Message("user", "Hi"),
        Message(
            "assistant",
            "A",
            "Hm.",
            (ToolUse("c1", "look", '{"a": 1}'), ToolUse("c2", "say", '{"input": "a\\"b"}')),
        ),
        Message("tool", "1", tool_call_id="c1"),
        Message("tool", "2", tool_call_id="c2"),
    ]


def test_a_namespace_s_call_has_the_name_that_the_model_sees() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "look", "namespace": "mcp__a__"}
    (turn,) = read(call)
    assert turn.tool_calls == (ToolUse("c", "mcp__a__look", "{}"),)
    tools = read_tools([{"type": "namespace", "name": "mcp__a__", "tools": [FUNCTION]}], Notes())
    assert [tool.function.name for tool in tools.functions] == ["mcp__a__look"]
    assert tools.name_of("look", "mcp__a__") == "mcp__a__look"


def test_what_other_servers_tools_did_is_left_out_and_named() -> None:
    notes = Notes()
    items = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"role": "user", "content": "Hi", "zqxj": 1},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"},
    ]
    messages = read_items(items, notes, lambda _: None)
    assert [message.role for message in messages] == ["user", "assistant"]
    assert [*notes.names] == ["input[].web_search_call", "input[].zqxj", "input[].arguments"]


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (5, "input.0"),
        ({}, "input.0.type"),
        ({"type": "message"}, "input.0.role"),
        ({"role": "root", "content": "a"}, "input.0.role"),
        ({"role": "user", "content": 5}, "input.0.content"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input.0.content.0.type"),
        ({"role": "user", "content": [{"text": 5}]}, "input.0.content.0.text"),
        ({"type": "function_call", "call_id": "c"}, "input.0.name"),
        ({"type": "item_reference", "id": "msg_1"}, "input.0.id"),
    ],
)
def test_an_item_that_cannot_be_shown_is_refused_at_its_place(item: Any, field: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        read_items([item], Notes(), lambda _: None)
    assert [error.field for error in refused.value.errors] == [field]


def test_a_reference_stands_for_the_stored_item() -> None:
    stored = {"type": "message", "role": "assistant", "content": "A"}
    reference = {"type": "item_reference", "id": "msg_1"}
    messages = read_items([reference], Notes(), {"msg_1": stored}.get)
    assert messages == [Message("assistant", "A")]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [5]}, "tools.0"),
        ({"tools": [{}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools.1.name"),
        ({"tools": [{"type": "namespace"}]}, "tools.0"),
        ({"tools": [{"type": "namespace", "name": "a", "tools": [5]}]}, "tools.0.tools.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": 5}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"background": True, "store": False}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"n": 2}, "n"),
        ({"metadata": {str(number): "a" for number in range(17)}}, "metadata"),
    ],
)
def test_a_field_that_cannot_be_kept_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        parse_response({"input": "Hi", **fields})
    assert [error.field for error in refused.value.errors] == [field]


def test_hosted_tools_are_left_out_and_named() -> None:
    notes = Notes()
    asked = parse_response(
        {"input": "Hi", "tools": [{"type": "web_search"}, FUNCTION, CUSTOM]}, notes
    )
    assert asked.tools is not None
    assert [tool.function.name for tool in asked.tools.functions] == ["look", "say"]
    assert [*notes.names] == ["tools[].web_search"]


def test_what_codex_sends_without_effect_is_named() -> None:
    notes = Notes()
    parse_response(
        {
            "input": [],
            "instructions": "Hi",
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "a",
            "client_metadata": {"a": "b"},
            "text": {"verbosity": "low"},
            "truncation": "auto",
        },
        notes,
    )
    assert {*notes.names} == {"prompt_cache_key", "client_metadata", "verbosity", "truncation"}
