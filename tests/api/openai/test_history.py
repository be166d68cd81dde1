"""Turns as clients send them back: what the model sees, and what is noted as left out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ParsedChatCompletionMessage

from penstock.api.openai.chat import parse_chat
from penstock.api.tolerance import Notes
from penstock.errors import InvalidFields
from penstock.request import Message, ToolUse

TEXT = "messages[].content[]"
CALL = "messages[].tool_calls[]"
MARK = "zqxj"


def read(*turns: Any) -> tuple[tuple[Message, ...], list[str]]:
    """Return the messages for the engine, and the names of the ignored fields."""
    notes = Notes()
    asked = parse_chat({"messages": list(turns)}, notes)
    messages: tuple[Message, ...] = asked.prompts()[0]["messages"]
    return messages, list(notes.names)


def turn(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": "A", **fields}


def call(arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}} | (
        fields
    )


def calling(*calls: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}


def result(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": content, **fields}


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
@pytest.mark.parametrize(
    "name",
    [
        *("name", "parsed", "id", "annotations", "audio", "cache_control", "weight", "status"),
        *("copilot_cache_control", "reasoning_details", "provider_specific_fields", "metadata"),
    ],
)
def test_a_field_that_no_template_shows_is_ignored_and_noted(role: str, name: str) -> None:
    (message,), notes = read(turn(role=role, **{name: {"a": 1}}))
    assert message.content == "A"
    assert notes == [f"messages[].{name}"]


@pytest.mark.parametrize("value", [None, "", [], {}, False, 0])
def test_an_empty_value_is_not_noted(value: Any) -> None:
    names = ["name", "refusal", "audio", "function_call", "annotations", "tool_calls", "parsed"]
    assert read(turn(role="assistant", **dict.fromkeys(names, value))) == (
        (Message("assistant", "A"),),
        [],
    )


@pytest.mark.parametrize(
    ("role", "shown"),
    [("developer", "system"), ("function", "tool"), ("system", "system"), ("user", "user")],
)
def test_every_role_is_shown(role: str, shown: str) -> None:
    (message,), notes = read(turn(role=role))
    assert (message.role, message.content, notes) == (shown, "A", [])


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "function"])
@pytest.mark.parametrize("fields", [{"content": None}, {"content": ""}, {"content": []}, {}])
def test_any_turn_may_have_no_content(role: str, fields: dict[str, Any]) -> None:
    (message,), notes = read({"role": role, **fields})
    assert (message.content, notes) == ("", [])


@pytest.mark.parametrize(
    ("content", "text", "ignored"),
    [
        ([{"type": "text", "text": "A"}, {"type": "text", "text": "B"}], "AB", []),
        ([{"type": "input_text", "text": "A"}], "A", []),
        ([{"type": "output_text", "text": "A", "annotations": []}], "A", []),
        ([{"type": "refusal", "refusal": "No."}], "No.", []),
        (["A", {"text": "B"}], "AB", []),
        ([{"type": "text", "text": None}], "", []),
        (
            [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}],
            "A",
            [f"{TEXT}.cache_control"],
        ),
    ],
    ids=str,
)
def test_every_kind_of_text_is_a_part(content: Any, text: str, ignored: list[str]) -> None:
    (message,), notes = read(turn(content=content))
    assert (message.content, notes) == (text, ignored)


@pytest.mark.parametrize("role", ["user", "tool"])
@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "image_url", "image_url": {"url": MARK}}, "images"),
        ({"type": "input_image", "image_url": MARK}, "images"),
        ({"type": "input_audio", "input_audio": {"data": MARK}}, "audio"),
        ({"type": "file", "file": {"file_data": MARK}}, "files"),
        ({"type": "video_url", "video_url": {"url": MARK}}, "videos"),
    ],
    ids=str,
)
def test_a_part_that_is_not_text_gets_one_clear_sentence(role: str, part: Any, media: str) -> None:
    body = {"messages": [turn(role=role, content=[{"type": "text", "text": "A"}, part])]}
    for strict in (False, True) if role == "user" else (False,):
        with pytest.raises(InvalidFields) as refused:
            parse_chat(body, Notes(strict=strict))
        (error,) = refused.value.errors
        assert error.field == "messages.0.content.1.type"
        assert error.message.partition(": ")[2] == (
            f"This server cannot show {media} to the model; it takes text only. Describe the"
            " content in a part of the type text, or ask a server whose engine takes"
            f" {media}."
        )


@pytest.mark.parametrize(
    "bad",
    [
        {"content": "A"},
        turn(role="root"),
        turn(role=[]),
        turn(content=5),
        turn(content={"a": 1}),
        turn(content=[5]),
        turn(content=[{"type": "text"}]),
        turn(content=[{"type": "text", "text": 5}]),
        turn(content=[{"type": MARK, "text": "A"}]),
        turn(content=[{"type": [], "text": "A"}]),
        calling(MARK),
        calling({"id": "c"}),
        turn(role="assistant", tool_calls=MARK),
        MARK,
    ],
    ids=str,
)
def test_a_turn_that_cannot_be_understood_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidFields) as refused:
        read(bad)
    assert all(MARK not in each.message for each in refused.value.errors)


@pytest.mark.parametrize("call_id", ["c", "c" * 1000, "a b/ü"])
def test_a_call_may_have_any_id(call_id: str) -> None:
    messages, notes = read(calling(call(id=call_id)), result("5", tool_call_id=call_id))
    assert messages[0].tool_calls[0].id == messages[1].tool_call_id == call_id
    assert notes == []


def test_calls_and_results_without_ids_are_matched_in_order() -> None:
    nameless = {"id": None, "function": {"name": "g", "arguments": "{}"}}
    (asked, second, first, lost), _ = read(
        calling(call(id="a"), nameless, call(id="")),
        result("1", tool_call_id="a"),
        {"role": "tool", "content": "2"},
        {"role": "function", "name": "f", "content": "3"},
    )
    ids = [each.id for each in asked.tool_calls]
    assert len(set(ids)) == 3
    assert [second.tool_call_id, first.tool_call_id, lost.tool_call_id] == ids


def test_a_result_without_a_call_is_shown() -> None:
    messages, notes = read(turn(), result("5", tool_call_id="gone"), {**result("6", id=""), "x": 0})
    assert [each.content for each in messages] == ["A", "5", "6"]
    assert notes == []


@pytest.mark.parametrize(
    "arguments",
    [
        *("", None, "{", '{"a": "b', "[]", "5", "null", MARK, [1], 5),
        *('{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 100_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_that_are_no_json_object_become_an_empty_one(arguments: Any) -> None:
    (message,), notes = read(calling(call(arguments)))
    assert message.tool_calls == (ToolUse("c", "f", "{}"),)
    assert notes == [f"{CALL}.function.arguments"]


def test_arguments_may_be_an_object() -> None:
    (message,), notes = read(calling(call({"a": "ü"})))
    assert message.tool_calls == (ToolUse("c", "f", '{"a": "ü"}'),)
    assert notes == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"a": [1, "ü"]}, '{"a": [1, "ü"]}'),
        ([{"a": 1}], '[{"a": 1}]'),
        ([{"type": "event", "text": "A"}], '[{"type": "event", "text": "A"}]'),
        (5, "5"),
        (False, "false"),
        ([{"type": "text", "text": "A"}, "B"], "AB"),
    ],
    ids=str,
)
def test_a_result_that_is_not_text_is_shown_as_json(content: Any, text: str) -> None:
    (_, message), _ = read(calling(call()), result(content))
    assert message.content == text


def test_a_call_in_the_old_form_is_a_tool_call() -> None:
    old = {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    (asked, answered), notes = read(old, {"role": "function", "name": "f", "content": "5"})
    assert asked.tool_calls == (ToolUse(answered.tool_call_id, "f", '{"a": 1}'),)
    assert (answered.role, answered.content, notes) == ("tool", "5", [])
    assert read(calling(call(), function_call={"name": "f"}))[1] == ["messages[].function_call"]


def test_a_call_of_a_tool_that_takes_text_is_shown() -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "f", "input": "A"}}
    (message,), notes = read(calling(custom))
    assert (message.tool_calls, notes) == ((ToolUse("c", "f", '{"input": "A"}'),), [])


def test_reasoning_is_read_in_every_form() -> None:
    for fields in (
        {"reasoning_content": "Hm"},
        {"reasoning": "Hm"},
        {"content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "A"}]},
    ):
        ((message,), notes) = read(turn(role="assistant", **fields))
        assert (message.reasoning, message.content, notes) == ("Hm", "A", [])
        (message,), notes = read(turn(**fields))
        assert (message.reasoning, message.content, len(notes)) == ("", "A", 1)


def test_a_refusal_is_what_the_assistant_said() -> None:
    (message,), notes = read(turn(role="assistant", content=None, refusal="No."))
    assert (message.content, notes) == ("No.", [])


def test_a_conversation_may_have_any_number_of_turns() -> None:
    messages, _ = read(*([turn()] * 5000))
    assert len(messages) == 5000
    with pytest.raises(InvalidFields):
        read()


def test_a_strict_server_refuses_what_it_refused() -> None:
    for turns in ([turn(name="A")], [turn(content=None)], [result("5")], [turn()] * 1025):
        with pytest.raises(InvalidFields):
            parse_chat({"messages": turns}, Notes(strict=True))


# Turns as clients send them: the shapes of their own messages, with short texts.


def test_a_parsed_message_of_openai_s_client_is_taken_back() -> None:
    sent: Any = {
        "role": "assistant",
        "content": '{"a": 1}',
        "parsed": {"a": 1},
        "tool_calls": [call('{"x": 1}')],
        "audio": None,
        "refusal": None,
    }
    sent["tool_calls"][0]["function"]["parsed_arguments"] = {"x": 1}
    parsed: Any = ParsedChatCompletionMessage[Any]
    back = json.loads(parsed.model_validate(sent).model_dump_json())
    (message, _), notes = read(back, result("5"))
    assert message == Message("assistant", '{"a": 1}', "", (ToolUse("c", "f", '{"x": 1}'),))
    assert notes == ["messages[].parsed", f"{CALL}.function.parsed_arguments"]


CLIENTS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "AutoGen": ([turn(name="user")], ["messages[].name"]),
    "Semantic Kernel": ([turn(role="system", name="Host"), turn()], ["messages[].name"]),
    "LangChain.js": (
        [
            turn(),
            calling(call(), name="model", content=""),
            result("5", name="f"),
            turn(role="assistant", name="model"),
        ],
        ["messages[].name"],
    ),
    "instructor": (
        [turn(), calling(call()), result("Validation Error found", name="f")],
        ["messages[].name"],
    ),
    "LiteLLM": (
        [
            turn(),
            calling(
                call(index=0),
                function_call=None,
                provider_specific_fields={"refusal": None},
                annotations=[],
            ),
            result("5"),
        ],
        ["messages[].provider_specific_fields"],
    ),
    "CrewAI": (
        [turn(), calling(call('{"city": "Bo')), result("5")],
        [f"{CALL}.function.arguments"],
    ),
    "OpenRouter's AI SDK": (
        [
            turn(content=[{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}]),
            turn(
                role="assistant",
                reasoning="Hm",
                reasoning_details=[{"type": "reasoning.text", "text": "Hm"}],
            ),
        ],
        [f"{TEXT}.cache_control", "messages[].reasoning_details"],
    ),
    "VS Code": (
        [turn(copilot_cache_control={"type": "ephemeral"})],
        ["messages[].copilot_cache_control"],
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_s_history_is_read(client: str) -> None:
    turns, ignored = CLIENTS[client]
    messages, notes = read(*turns)
    assert len(messages) == len(turns)
    assert notes == ignored


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["text", "f"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "id", "function", "name", "arguments", "custom"]),
            inner,
        )
    ),
    max_leaves=12,
)
turns_of_any_kind = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function"])},
    optional=dict.fromkeys(
        ["content", "tool_calls", "tool_call_id", "function_call", "reasoning", "refusal", "name"],
        json_values,
    ),
)


@given(st.lists(turns_of_any_kind, min_size=1, max_size=4))
def test_any_turn_is_read_or_refused_in_words(turns: list[dict[str, Any]]) -> None:
    try:
        messages, _ = read(*turns)
    except InvalidFields:
        return
    assert len(messages) == len(turns)
    for message in messages:
        assert isinstance(message.content, str)
        assert isinstance(message.reasoning, str)
        for each in message.tool_calls:
            assert each.id
            assert each.name
            assert isinstance(json.loads(each.arguments), dict)
        assert bool(message.tool_call_id) == (message.role == "tool")
