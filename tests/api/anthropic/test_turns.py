"""Turns of Anthropic's API become the messages that the engine shows."""

from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from penstock.api.anthropic.signatures import carried_by, carry, is_signed, sign
from penstock.api.anthropic.turns import read_system, read_turns
from penstock.api.tolerance import Notes
from penstock.request import Message, ToolUse

TEXT = {"type": "text", "text": "Hi"}
CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "yes"}


def read(*content: Any, role: str = "user") -> tuple[tuple[Message, ...], list[str]]:
    notes = Notes()
    return read_turns([{"role": role, "content": list(content)}], notes), list(notes.names)


def test_results_are_messages_of_their_own_in_their_order() -> None:
    found, names = read(RESULT, {**RESULT, "tool_use_id": "b", "is_error": True}, TEXT, TEXT)
    assert names == []
    assert found == (
        Message("tool", "yes", "", (), "a"),
        Message("tool", "Error: yes", "", (), "b"),
        Message("user", "Hi\nHi"),
    )
    found, _ = read(TEXT, RESULT)
    assert [message.role for message in found] == ["user", "tool"]


def test_an_answer_keeps_its_text_its_thoughts_and_its_calls() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "anything"}
    found, names = read(thought, TEXT, CALL, {**TEXT, "text": "!"}, role="assistant")
    assert found == (Message("assistant", "Hi!", "Hm.", (ToolUse("a", "f", '{"x": 1}'),)),)
    assert names == []


def test_calls_and_results_without_ids_are_paired_in_order() -> None:
    call = {"type": "tool_use", "name": "f", "input": None}
    result = {"type": "tool_result", "content": [TEXT, {**TEXT, "text": None}]}
    notes = Notes()
    turns = [
        {"role": "assistant", "content": [call, call]},
        {"role": "user", "content": [result] * 2},
    ]
    asked, *answers = read_turns(turns, notes)
    ids = [each.id for each in asked.tool_calls]
    assert len(set(ids)) == 2
    assert [answer.tool_call_id for answer in answers] == ids
    assert answers[0].content == "Hi\n"
    assert list(notes.names) == ["messages[].content[].input"]


def test_what_only_anthropic_s_server_knows_is_left_out_and_named() -> None:
    kinds = ["server_tool_use", "web_search_tool_result", "redacted_thinking", "container_upload"]
    found, names = read(*({"type": kind, "data": "x"} for kind in kinds), TEXT, role="assistant")
    assert found == (Message("assistant", "Hi"),)
    assert names == [f"messages[].content[].{kind}" for kind in kinds]


def test_unknown_fields_are_left_out_and_named() -> None:
    block = {**TEXT, "cache_control": {"type": "ephemeral"}, "citations": None}
    notes = Notes()
    assert read_turns([{"role": "user", "content": [block], "id": "x"}], notes)[0].content == "Hi"
    assert list(notes.names) == ["messages[].id", "messages[].content[].cache_control"]


def test_documents_and_search_results_are_shown_as_text() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "Deep."}
    blocks = {"type": "content", "content": [TEXT]}
    (message,), _ = read(
        {"type": "document", "source": plain, "title": "Lakes"},
        {"type": "document", "source": blocks, "context": "Hills"},
        {"type": "search_result", "title": "T", "source": "S", "content": [TEXT]},
    )
    assert message.content == "Lakes\nDeep.\nHills\nHi\nT\nS\nHi"


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "image"}, "0.content.0.type"),
        ({"type": "document", "source": {"type": "base64"}}, "0.content.0.type"),
        ({**RESULT, "content": [{"type": "image"}]}, "0.content.0.content.0.type"),
        ({**RESULT, "content": [CALL]}, "0.content.0.content.0.type"),
        ({"type": "text"}, "0.content.0.text"),
        ({"type": 5}, "0.content.0.type"),
        (5, "0.content.0"),
    ],
    ids=str,
)
def test_a_block_that_the_model_cannot_see_is_refused(block: Any, field: str) -> None:
    with pytest.raises(PydanticCustomError) as refused:
        read(block)
    assert refused.value.context == {"field": field}


def test_a_result_in_an_answer_is_refused() -> None:
    with pytest.raises(PydanticCustomError, match="turn of the user's"):
        read(RESULT, role="assistant")


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("x-anthropic-billing-header: a=1; cch=2;", ""),
        ("x-anthropic-billing-header: a=1;\n\nBe kind.", "Be kind."),
        ("Be kind.\nx-anthropic-billing-header: a", "Be kind.\nx-anthropic-billing-header: a"),
        ([{**TEXT, "text": "x-anthropic-billing-header: a"}, TEXT, "Be kind."], "Hi\nBe kind."),
    ],
)  # fmt: skip
def test_only_a_first_billing_line_is_removed(sent: Any, text: str) -> None:
    notes = Notes()
    assert read_system(sent, notes) == text
    assert ("system[].x-anthropic-billing-header" in notes.names) == ("Be kind.\nx" not in text)


def test_a_signature_belongs_to_its_text() -> None:
    assert is_signed("Hm.", sign("Hm."))
    assert not is_signed("Ha.", sign("Hm."))
    assert is_signed("", carry("Hm. é"))
    assert not is_signed("", "")
    assert carried_by(carry("Hm. é")) == "Hm. é"
    for strange in ("", "penstock2.!", "penstock2.é", "penstock2.gA==", sign("Hm."), "EqQB"):
        assert carried_by(strange) == ""
