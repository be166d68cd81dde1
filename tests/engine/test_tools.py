"""Penstock's own form of tool calls: its grammar, and the calls in a text."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.lark import checked, recogniser_of
from penstock.engine.tools import CallForm, CallParser, CallSink, with_instructions
from penstock.request import Message
from tests.support.recording import RecordingSink

NAMES = ["get_weather", 'mcp.server/día "x"']


def tools_of(*names: str) -> str:
    schema = {"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]}
    closed = {**schema, "additionalProperties": False}
    bound = {**closed, "x-guidance": {"whitespace_flexible": False}}
    functions = [{"name": name, "description": "", "parameters": bound} for name in names]
    return json.dumps([{"type": "function", "function": each} for each in functions])


def call(name: str, text: str) -> str:
    arguments = json.dumps({"s": text}, ensure_ascii=False, separators=(",", ":"))
    name = json.dumps(name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


TEXT = st.text(alphabet='a{}"\\ \n<é🌊')


def parsed(parts: list[tuple[str, str]]) -> tuple[str, list[list[str]]]:
    text, calls = "", []
    for kind, part in parts:
        if kind == "text":
            text += part
        elif kind == "name":
            calls.append([part, ""])
        else:
            calls[-1][1] += part
    return text, calls


@given(
    TEXT, st.lists(st.tuples(st.sampled_from(NAMES), TEXT), max_size=3), st.lists(st.integers(0))
)
def test_calls_are_found_wherever_the_text_is_cut(
    said: str, calls: list[tuple[str, str]], cuts: list[int]
) -> None:
    whole = said + "\n".join(call(*each) for each in calls)
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    parser = CallParser()
    parts: list[tuple[str, str]] = []
    for begin, end in pairwise(places):
        parts += parser.push(whole[begin:end])
    parts += parser.flush()
    text, found = parsed(parts)
    if "<tool_call>" in said + whole[: len(said) + 1]:
        return
    assert text == (said.rstrip() if calls else said)
    assert [name for name, _ in found] == [name for name, _ in calls]
    assert [json.loads(arguments) for _, arguments in found] == [{"s": s} for _, s in calls]
    assert parser.is_complete


def test_arguments_come_as_they_are_generated() -> None:
    parser = CallParser()
    pieces = ["<tool", '_call>\n{"name": "f', '", "arguments": {"s":"', "ab", "c", '"', "}", "}\n"]
    assert [parser.push(piece) for piece in pieces] == [
        [],
        [],
        [("name", "f"), ("arguments", '{"s":"')],
        [("arguments", "ab")],
        [("arguments", "c")],
        [("arguments", '"')],
        [("arguments", "}")],
        [],
    ]


FORMS: dict[str, dict[str, Any]] = {
    "auto": {"must_call": False, "parallel": True},
    "required": {"must_call": True, "parallel": True},
    "one": {"must_call": True, "parallel": False},
    "schema": {"must_call": False, "parallel": False, "schema": '{"const": "lake"}'},
}
ONE, TWO = call(NAMES[0], "a"), call(NAMES[1], '} <tool_call> \\"')
ANSWERS = {
    "": {"auto"},
    "Hello <tool> {": {"auto"},
    '"lake"': {"auto", "schema"},
    ONE: {"auto", "required", "one", "schema"},
    TWO: {"auto", "required", "one", "schema"},
    f"{ONE}\n{TWO}\n{ONE}": {"auto", "required"},
    f"Let me see.\n{ONE}": {"auto"},
    f"{ONE} and so on": set(),
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>': set(),
    ONE.replace('"s"', '"t"'): set(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_grammar_allows_what_the_form_says(form: str) -> None:
    recognise = recogniser_of(checked(CallForm(tools_of(*NAMES), **FORMS[form]).lark()))
    assert {answer for answer in ANSWERS if recognise(answer)} == {
        answer for answer, forms in ANSWERS.items() if form in forms
    }


def test_the_grammar_goes_on_after_a_thought_and_within_a_call() -> None:
    form = CallForm(tools_of(*NAMES), must_call=True, parallel=False)
    recognise = recogniser_of(checked(form.lark(ends_thought="</think>")))
    assert recognise(f"Hm, {ONE}?\n</think>\n\n{ONE}")
    assert not recognise(ONE)
    assert recogniser_of(checked(form.lark(is_open=True)))(ONE.removeprefix("<tool_call>"))


def test_a_thousand_tools_have_a_grammar() -> None:
    names = [f"mcp__server__tool_{number}" for number in range(1000)]
    form = CallForm(tools_of(*names), must_call=True, parallel=True)
    assert recogniser_of(checked(form.lark()))(call("mcp__server__tool_999", "a"))


def sink_of(form: str, answer: str = "") -> tuple[RecordingSink, CallSink]:
    inner = RecordingSink()
    return inner, CallSink(inner, CallForm(tools_of(*NAMES), **FORMS[form]), answer)


def test_every_token_is_passed_on_at_once() -> None:
    inner, sink = sink_of("auto")
    for number, piece in enumerate(["Hm", ".", "\n", *ONE, "\n", *TWO]):
        sink.delta(piece, 1, (number,))
        assert inner.num_tokens == number + 1
    sink.finish("stop", inner.num_tokens)
    assert inner.text() == "Hm."
    assert inner.reason == "stop"
    names = [name for _, _, name, _ in inner.tool_parts if name]
    assert names == NAMES
    for number in (0, 1):
        parts = [part for part in inner.tool_parts if part[0] == number]
        assert parts[0][1].startswith("call_")
        assert not any(part[1] for part in parts[1:])
        json.loads("".join(arguments for _, _, _, arguments in parts))


@pytest.mark.parametrize(
    ("form", "text"),
    [("auto", ONE[:-30]), ("required", "Hello"), ("schema", "Hello"), ("one", ONE[:20])],
)
def test_an_answer_that_loses_its_form_fails(form: str, text: str) -> None:
    """llama.cpp drops a grammar that it can no longer follow, and only logs that."""
    inner, sink = sink_of(form)
    sink.delta(text, 1, (1,))
    sink.finish("stop", 1)
    assert inner.failure is not None
    assert inner.failure[0] == "schema_lost"
    inner, sink = sink_of(form)
    sink.delta(text, 1, (1,))
    sink.finish("length", 1)
    assert inner.reason == "length"


def test_the_model_is_told_about_the_tools_in_the_system_turn() -> None:
    user = Message("user", "Hi")
    told = with_instructions((Message("system", "Be kind."), user), tools_of("f"), must_call=True)
    assert told[0].content.startswith("Be kind.\n\n")
    assert '"name": "f"' in told[0].content
    assert told[1:] == (user,)
    first, second = with_instructions((user,), tools_of("f"), must_call=False)
    assert (first.role, second) == ("system", user)


def test_an_answer_under_a_schema_may_contain_the_marks_of_a_call() -> None:
    answer = '{"a":"<tool_call>\\n</tool_call> <tool"}'
    for pieces in ([answer], list(answer)):
        inner, sink = sink_of("schema")
        for piece in pieces:
            sink.delta(piece, 1, (1,))
        sink.finish("stop", len(pieces))
        assert (inner.text(), inner.reason, inner.tool_parts) == (answer, "stop", [])


@pytest.mark.parametrize("form", ["required", "one", "schema"])
def test_a_call_that_is_cut_within_its_mark_shows_no_text(form: str) -> None:
    inner, sink = sink_of(form)
    for piece in ("\n", "<", "tool", "_c"):
        sink.delta(piece, 1, (1,))
    sink.finish("length", 4)
    assert (inner.text(), inner.reason, inner.num_tokens) == ("", "length", 4)
