"""A real model calls tools, for which its chat template has no place."""

import json
from typing import Any

import pytest

from tests.support.calling import (
    NAMED,
    conversation_goes_on_with_what_the_tool_said,
    counts_of,
    create,
    joined,
    tool,
    usage_of,
)
from tests.support.servers import RunningServer

WEATHER = tool("get_weather", {"city": {"type": "string"}, "days": {"type": "integer"}})
TIME = tool("get_time", {"zone": {"enum": ["UTC", "CET"]}})
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather in Bonn for 2 days?"}],
    "tools": [WEATHER, TIME],
    "temperature": 0,
    "max_tokens": 80,
    "parallel_tool_calls": False,
}


@pytest.mark.parametrize("choice", ["required", NAMED], ids=str)
def test_a_required_call_is_made_streamed_and_whole(server: RunningServer, choice: Any) -> None:
    fields = {**ASKED, "tool_choice": choice}
    whole = create(server, **fields)
    chunks = create(server, **fields, stream=True, stream_options={"include_usage": True})
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert (type(arguments["city"]), type(arguments["days"])) == (str, int)
    message = joined(chunks)
    assert [each[1:] for each in message["calls"]] == [["get_weather", call.function.arguments]]
    assert message["content"] == ""
    assert usage_of(chunks) == counts_of(whole.usage)


def test_the_model_may_answer_in_words(server: RunningServer) -> None:
    whole = create(server, **{**ASKED, "max_tokens": 12})
    assert whole.choices[0].message.content
    assert whole.choices[0].message.tool_calls is None


def test_emoji_in_arguments_come_whole(server: RunningServer) -> None:
    moods = ["🐶👩‍👩‍👧‍👦", "e\u0301 日本語"]
    fields = {**ASKED, "tools": [tool("set_mood", {"mood": {"enum": moods}})]}
    message = joined(create(server, **fields, tool_choice="required", stream=True))
    ((_, _, arguments),) = message["calls"]
    assert json.loads(arguments)["mood"] in moods


def test_a_conversation_goes_on_with_what_the_tool_said(server: RunningServer) -> None:
    conversation_goes_on_with_what_the_tool_said(server, {**ASKED, "tool_choice": "required"})
