"""Answers keep the values, texts and counts that a client asked for, over a real llama.cpp.

Every test here once failed: the answer was wrong, and nothing said so.
"""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.calling import CALLS, HELLO, create, tool
from tests.support.servers import RunningServer, serve
from tests.support.templates import TOOLS


@pytest.fixture(scope="module")
def rill() -> Iterator[RunningServer]:
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def caller() -> Iterator[RunningServer]:
    with serve(slots=4, engine_arg=[f"chat_template={TOOLS}"]) as server:
        yield server


def answer_to(server: RunningServer, schema: dict[str, Any], **fields: Any) -> Any:
    """Return the first choice of an answer that must satisfy this schema."""
    asked = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    fields = {"messages": HELLO, "max_tokens": 60, "temperature": 0, **fields}
    return create(server, response_format=asked, **fields).choices[0]


def arguments_of(server: RunningServer, schema: dict[str, Any]) -> Any:
    """Return the value of a tool's only argument, which must satisfy this schema."""
    fields = {**CALLS, "tools": [tool("act", {"it": schema})]}
    message = create(server, **fields, tool_choice="required").choices[0].message
    return json.loads(message.tool_calls[0].function.arguments)["it"]


# Integers.

GREATEST = 2**53


@pytest.mark.parametrize("number", [GREATEST, -GREATEST, GREATEST - 1], ids=str)
def test_a_schema_keeps_an_integer_up_to_2_53(rill: RunningServer, number: int) -> None:
    for schema in ({"const": number}, {"enum": [number]}, bounded(number)):
        assert json.loads(answer_to(rill, schema).message.content) == number


def bounded(number: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": number, "maximum": number}


def refusal_of(asked: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refused:
        asked()
    return refused.value


@pytest.mark.parametrize(
    "number",
    [GREATEST + 1, -GREATEST - 1, 2512292042121000001, 12345678901234567890, 10**30],
    ids=str,
)
def test_a_schema_with_an_integer_that_would_change_is_refused(
    rill: RunningServer, number: int
) -> None:
    inner = {"type": "object", "properties": {"id": {"const": number}}, "required": ["id"]}
    values = ({"const": number}, {"enum": [1, {"a": [number]}]}, bounded(number), inner)
    for schema in (*values, {"type": "number", "exclusiveMaximum": number}):
        refused = refusal_of(lambda schema=schema: answer_to(rill, schema))
        assert refused.code == "invalid_schema"
        assert str(GREATEST) in refused.message


def test_a_bound_beyond_2_53_is_refused_also_as_a_float(rill: RunningServer) -> None:
    """llama.cpp gave 9223372036854775807 for 1e20."""
    schema = {"type": "integer", "minimum": 1e20, "maximum": 1e20}
    assert refusal_of(lambda: answer_to(rill, schema)).code == "invalid_schema"


def test_a_tool_keeps_an_integer_up_to_2_64_and_refuses_a_greater_one(
    caller: RunningServer,
) -> None:
    for number in (GREATEST + 1, 2**64 - 1, -(2**63) + 2**10):
        assert arguments_of(caller, {"const": number}) == number
        assert arguments_of(caller, {"enum": [number]}) == number
    for number in (2**64, -(2**63) + 1, -(2**63)):
        refused = refusal_of(lambda number=number: arguments_of(caller, {"enum": [number]}))
        assert refused.code == "invalid_tools"
        assert "an integer is not from" in refused.message


def test_the_number_at_which_the_grammar_library_crashes_is_refused(rill: RunningServer) -> None:
    refused = refusal_of(lambda: answer_to(rill, {"const": -(2.0**63)}))
    assert refused.code == "invalid_schema"
    assert "-2^63" in refused.message
