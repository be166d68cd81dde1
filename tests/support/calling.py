"""Checks of tools and reasoning with OpenAI's own client, shared by the tests of all engines.

A bias makes the model call a tool (see `templates`). Each engine's tests pass the fields it needs.
"""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.support.conversations import CONVERSATIONS, turn
from tests.support.servers import RunningServer
from tests.support.templates import CALL_ID

HELLO: Any = [{"role": "user", "content": "Hello"}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def tool(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ZONES = ["UTC", "CET"]
BOTH = [
    tool("get_weather", {"city": {"enum": ["Bonn", "Ulm"]}, "days": {"enum": [1, 2]}}),
    tool("get_time", {"zone": {"enum": ZONES}}),
]
CALLS: dict[str, Any] = {
    "messages": HELLO,
    "tools": BOTH,
    "temperature": 0,
    "logit_bias": {str(CALL_ID): 100},
    "parallel_tool_calls": False,
}

# For calls in Penstock's own form, which the model makes only if it must.
# One tool: between several the model would choose by chance.
ASKED: dict[str, Any] = {
    "messages": HELLO,
    "tools": BOTH[1:],
    "temperature": 0,
    "parallel_tool_calls": False,
}
MUST_CALL: dict[str, Any] = {**ASKED, "tool_choice": "required"}
NEVER_ENDS = {"0": -100, "4": -100}


def client_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def name_of(server: RunningServer) -> str:
    with client_of(server) as client:
        (model,) = client.models.list()
        return model.id


def create(server: RunningServer, **fields: Any) -> Any:
    with client_of(server) as client:
        answer = client.chat.completions.create(model=name_of(server), **fields)
        return list(answer) if fields.get("stream") else answer


def joined(chunks: list[ChatCompletionChunk], index: int = 0) -> dict[str, Any]:
    """Join the deltas of a choice to its content, its reasoning and its tool calls."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            delta = choice.delta
            message["content"] += delta.content or ""
            message["reasoning_content"] += getattr(delta, "reasoning_content", "")
            for part in delta.tool_calls or []:
                assert part.function is not None
                if part.id is not None:
                    assert part.index == len(message["calls"])
                    assert part.type == "function"
                    message["calls"].append([part.id, part.function.name, ""])
                else:
                    assert part.function.name is None
                message["calls"][part.index][2] += part.function.arguments or ""
    return message


def ends_of(chunks: list[ChatCompletionChunk]) -> list[tuple[int, str]]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return sorted((c.index, c.finish_reason) for c in choices if c.finish_reason is not None)


def usage_of(chunks: list[ChatCompletionChunk]) -> dict[str, object]:
    """Return the usage in the last chunk, as `counts_of` does."""
    return counts_of(chunks[-1].usage)


def counts_of(usage: Any) -> dict[str, object]:
    """Return the usage without the cached tokens, which the same request has more of later."""
    counts: dict[str, object] = usage.to_dict()
    details: Any = counts.pop("prompt_tokens_details")
    assert 0 <= details["cached_tokens"] < usage.prompt_tokens
    return counts


# Checks that every engine passes.


def call_is_the_same_streamed_and_whole(
    server: RunningServer, fields: dict[str, Any], choice: Any
) -> list[ChatCompletionChunk]:
    """Check a call with this `tool_choice`. Returns the chunks for further checks."""
    fields = {**fields, "tool_choice": choice}
    whole = create(server, **fields)
    chunks: list[ChatCompletionChunk] = create(
        server, **fields, stream=True, stream_options={"include_usage": True}
    )
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].message.content is None
    assert whole.choices[0].finish_reason == "tool_calls"
    message = joined(chunks)
    assert [each[1:] for each in message["calls"]] == [
        [call.function.name, call.function.arguments]
    ]
    assert message["content"] == ""
    assert ends_of(chunks) == [(0, "tool_calls")]
    assert usage_of(chunks) == counts_of(whole.usage)
    arguments = json.loads(call.function.arguments)
    assert choice != NAMED or call.function.name == "get_weather"
    if call.function.name == "get_weather":
        assert set(arguments) == {"city", "days"}
    else:
        assert call.function.name == "get_time"
        assert arguments["zone"] in ZONES
    return chunks


def every_token_is_counted(server: RunningServer, fields: dict[str, Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = create(server, **fields, stream=True, stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert counts == sorted(counts)
    assert counts[0] > 5  # the tokens of the mark and the name have no chunk of their own
    assert counts[-1] == counts[-2]  # the finish and the usage come after the last token


def model_may_answer_instead(server: RunningServer, **more: Any) -> None:
    fields = {"messages": HELLO, "tools": BOTH, "temperature": 0, "max_tokens": 9, **more}
    for choice in ("auto", "none"):
        whole = create(server, **fields, tool_choice=choice)
        chunks = create(server, **fields, tool_choice=choice, stream=True)
        assert whole.choices[0].message.tool_calls is None
        assert whole.choices[0].message.content == joined(chunks)["content"] != ""
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == 9


def several_calls_and_only_one(server: RunningServer, fields: dict[str, Any]) -> None:
    """The bias makes the model begin a call whenever it is allowed to."""
    several = {**fields, "parallel_tool_calls": None}
    answer = create(server, **several).choices[0]
    assert answer.finish_reason == "length"
    assert len(answer.message.tool_calls) >= 2
    assert len({call.id for call in answer.message.tool_calls}) == len(answer.message.tool_calls)
    message = joined(create(server, **several, stream=True))
    assert [call[1:] for call in message["calls"]] == [
        [call.function.name, call.function.arguments] for call in answer.message.tool_calls
    ]
    (_,) = create(server, **fields).choices[0].message.tool_calls


def several_calls_have_their_own_ids(server: RunningServer, fields: dict[str, Any]) -> None:
    """The model is not allowed to end, so it calls again and again."""
    several = {**fields, "parallel_tool_calls": None, "logit_bias": NEVER_ENDS}
    answer = create(server, **several).choices[0]
    calls = answer.message.tool_calls
    assert len({call.id for call in calls}) == len(calls) > 1
    message = joined(create(server, **several, stream=True))
    assert [call[1:] for call in message["calls"]] == [
        [call.function.name, call.function.arguments] for call in calls
    ]


def call_that_is_cut_says_so(
    server: RunningServer, fields: dict[str, Any], max_tokens: int
) -> None:
    answer = create(server, **fields, max_tokens=max_tokens)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == max_tokens
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.arguments.startswith("{")


def conversation_goes_on_with_what_the_tool_said(
    server: RunningServer, calls: dict[str, Any], **more: Any
) -> None:
    asked = create(server, **calls).choices[0].message
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "It is noon."}
    fields = {"max_tokens": 8, "temperature": 0, **more}
    before = create(server, **fields, tools=BOTH, messages=HELLO)
    turns = [*HELLO, asked.to_dict(), result]
    after = create(server, **fields, tools=BOTH, messages=turns)
    assert after.usage.prompt_tokens > before.usage.prompt_tokens + 10
    assert after.choices[0].message.content
    assert create(server, **fields, messages=turns).choices[0].message.content


def parameters_are_refused(server: RunningServer, schema: dict[str, Any], **more: Any) -> None:
    """The message repeats nothing of the parameters, which hold "zqxj"."""
    function = {"name": "f", "strict": True, "parameters": {"type": "object", **schema}}
    tools: Any = [{"type": "function", "function": function}]
    with pytest.raises(openai.BadRequestError) as refused:
        create(server, messages=HELLO, tools=tools, **more)
    assert (refused.value.code, refused.value.param) == ("invalid_tools", "tools")
    assert "zqxj" not in refused.value.message


def reasoning_is_told_apart_streamed_and_whole(
    server: RunningServer, fields: dict[str, Any]
) -> ChatCompletion:
    """Check a model that thinks in small letters and answers in capitals. Returns the answer."""
    whole: ChatCompletion = create(server, **fields)
    chunks = create(server, **fields, stream=True, stream_options={"include_usage": True})
    message = joined(chunks)
    said: Any = whole.choices[0].message
    assert said.reasoning_content == message["reasoning_content"] != ""
    assert said.content == message["content"] != ""
    assert "think" not in message["reasoning_content"] + message["content"]
    assert message["reasoning_content"].islower()
    assert message["content"].isupper()
    assert whole.usage is not None
    assert usage_of(chunks) == counts_of(whole.usage)
    kinds = ["reasoning_content" in chunk.choices[0].delta.to_dict() for chunk in chunks[:-2]]
    assert kinds == sorted(kinds, reverse=True)  # all reasoning comes before the content
    return whole


def model_is_told_not_to_think(server: RunningServer, fields: dict[str, Any]) -> None:
    message = create(server, **fields, reasoning_effort="none").choices[0].message
    assert message.content
    assert not hasattr(message, "reasoning_content")
    with client_of(server) as client:  # its template has no degrees of effort
        raw = client.chat.completions.with_raw_response.create(
            model=name_of(server), **fields, reasoning_effort="low"
        )
    assert raw.headers["x-penstock-ignored"] == "reasoning_effort"


def conversation_is_answered(server: RunningServer, name: str) -> None:
    answer: ChatCompletion = create(server, messages=CONVERSATIONS[name], max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1
    assert answer.usage.prompt_tokens > 1


def conversation_is_refused(server: RunningServer) -> None:
    """Check what the template refuses, which is what contains "zqxj"."""
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            create(server, messages=[turn("user", "zqxj")], stream=stream)
        error: Any = refused.value.body
        assert (error["code"], error["param"]) == ("template_refused", "messages")
        assert error["retry_safe"] is False
        assert "zqxj" not in error["message"]
