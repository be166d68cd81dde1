"""Tools and choices of them as clients of other companies' APIs send them to a chat."""

from typing import Any

import pytest

from penstock.api.fields import parse
from penstock.api.openai.chat import ChatRequest
from penstock.api.tolerance import Notes
from penstock.errors import Problem
from tests.api.bodies import FUNCTION, HELLO, NAMED, TOOL
from tests.api.parsing import parsed

CHATS = "/v1/chat/completions"
OTHER = {"type": "function", "function": {**FUNCTION, "name": "other"}}


def chat(**fields: Any) -> tuple[str, tuple[str, ...]] | Problem:
    return parsed(CHATS, {"messages": [HELLO], "tools": [TOOL, OTHER], **fields})


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("any", "required"),
        ({"type": "any"}, "required"),
        ({"type": "required"}, "required"),
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "look"}, NAMED),
        ({"type": "function", "name": "look"}, NAMED),
        ({"function": {"name": "look"}}, NAMED),
        ({"type": None, "function": {"name": "look"}}, NAMED),
    ],
)
def test_a_choice_in_another_form_is_the_same_choice(sent: object, meant: object) -> None:
    told = chat(tool_choice=meant)
    assert not isinstance(told, Problem)
    assert chat(tool_choice=sent) == told


def test_the_choices_differ() -> None:
    told = [chat(tool_choice=each) for each in ("required", "auto", "none", NAMED)]
    assert len({each[0] for each in told if not isinstance(each, Problem)}) == 4


def test_what_a_choice_says_besides_is_named() -> None:
    told = chat(tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert not isinstance(told, Problem)
    assert told[1] == ("tool_choice.disable_parallel_tool_use",)


@pytest.mark.parametrize("choice", ["sometimes", 5, {"type": "web_search"}, ["auto"]])
def test_another_choice_is_refused_in_a_sentence(choice: object) -> None:
    told = chat(tool_choice=choice)
    assert isinstance(told, Problem)
    assert told.detail == (
        'tool_choice: Give "none", "auto", "required", or an object that names a function.'
    )


def test_a_function_may_come_without_its_type() -> None:
    assert chat(tools=[{"function": FUNCTION}]) == chat(tools=[TOOL])
    assert chat(tools=[{"type": None, "function": FUNCTION}]) == chat(tools=[TOOL])


def test_a_tool_that_its_company_runs_is_left_out_and_named() -> None:
    told, alone = chat(tools=[{"type": "web_search"}, TOOL]), chat(tools=[TOOL])
    assert not isinstance(told, Problem)
    assert not isinstance(alone, Problem)
    assert told == (alone[0], ("tools[].web_search",))
    only = chat(tools=[{"type": "web_search"}])
    none = chat(tools=None)
    assert not isinstance(only, Problem)
    assert not isinstance(none, Problem)
    assert only == (none[0], ("tools[].web_search",))


def test_a_call_that_nothing_is_left_for_cannot_be_required() -> None:
    told = chat(tools=[{"type": "web_search"}], tool_choice="required")
    assert isinstance(told, Problem)
    assert told.detail == "tool_choice: Give tools to use tool_choice."


@pytest.mark.parametrize(
    "choice", ["any", {"type": "auto"}, {"type": "tool", "name": "look"}, {"function": {}}]
)
def test_a_strict_server_takes_no_other_form(choice: object) -> None:
    body = {"messages": [HELLO], "tools": [TOOL], "tool_choice": choice}
    with pytest.raises(Problem) as refused:
        parse(ChatRequest, body, Notes(strict=True))
    assert refused.value.detail.startswith("tool_choice: Give")
