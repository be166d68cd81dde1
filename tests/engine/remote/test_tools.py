"""Tools over upstreams: the upstream finds the calls, and Penstock keeps what it was asked for."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from penstock.request import Message
from tests.support.fake_upstream import END, HEAD, Exchange, FakeUpstream, event, fakes
from tests.support.remote import ask, remote

PARAMETERS = {"type": "object", "properties": {}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}])
ASKING: dict[str, Any] = {
    "prompt": None,
    "messages": (Message("user", "one two three"),),
    "tools": TOOLS,
}


def call(number: int) -> dict[str, Any]:
    function = {"name": "look", "arguments": "{}"}
    return {"tool_calls": [{"index": number, "id": f"call-{number}", "function": function}]}


def answers(*deltas: dict[str, Any]) -> Callable[[Exchange], Awaitable[None]]:
    """Return a fault that sends these parts of a chat, and its end."""

    async def fault(exchange: Exchange) -> None:
        choices = [{"index": 0, "delta": each} for each in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        await exchange.send(HEAD, *(event({"choices": [each]}) for each in choices), END)

    return fault


async def test_a_second_call_ends_the_answer_if_one_was_asked_for() -> None:
    one = FakeUpstream()
    async with fakes(one), remote(one) as engine:
        one.always = answers(call(0), call(1))
        both = await ask(engine, "both", 20, **ASKING).end()
        single = await ask(engine, "single", 20, **ASKING, parallel_calls=False).end()
    assert [each[1] for each in both.tool_parts] == ["call-0", "call-1"]
    assert [each[1] for each in single.tool_parts] == ["call-0"]
    assert (single.failure, single.reason) == (None, "stop")
    assert one.asked[1].body["parallel_tool_calls"] is False


async def test_an_answer_without_the_call_that_it_must_have_is_an_error() -> None:
    one = FakeUpstream()
    async with fakes(one), remote(one) as engine:
        one.faults = [answers({"content": "No."}), answers(call(0)), answers({"content": "No."})]
        text = await ask(engine, "text", 20, **ASKING, tool_call_required=True).end()
        called = await ask(engine, "called", 20, **ASKING, tool_call_required=True).end()
        free = await ask(engine, "free", 20, **ASKING).end()
    assert text.failure is not None
    assert text.failure[0] == "schema_lost"
    assert (called.failure, free.failure) == (None, None)
    assert [each.body["tool_choice"] for each in one.asked] == ["required", "required", "auto"]


async def test_a_schema_beside_tools_binds_the_answer_but_no_call() -> None:
    one = FakeUpstream("openai")
    async with fakes(one), remote(one) as engine:
        assert "tools_with_schema" in engine.info.supports
        one.faults = [answers(call(0)), answers({"content": "{}"}), answers({"content": "No."})]
        fields = {**ASKING, "json_schema": '{"type": "object"}'}
        called = await ask(engine, "called", 20, **fields).end()
        bound = await ask(engine, "bound", 20, **fields).end()
        unbound = await ask(engine, "unbound", 20, **fields).end()
    assert (called.failure, len(called.tool_parts)) == (None, 1)
    assert (bound.failure, bound.text()) == (None, "{}")
    assert unbound.failure is not None
    assert unbound.failure[0] == "schema_lost"
    assert one.asked[0].body["response_format"] == {"type": "json_object"}


async def test_the_upstream_counts_the_prompt_that_it_has_rendered_with_tools() -> None:
    one = FakeUpstream()
    usage = {"prompt_tokens": 40, "completion_tokens": 2}

    async def answer(exchange: Exchange) -> None:
        begun = {"choices": [{"index": 0, "delta": {"content": "No."}}]}
        ended = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        cached = {"prompt_tokens_details": {"cached_tokens": 30}}
        counted = {"choices": [], "usage": usage | cached}
        await exchange.send(HEAD, event(begun), event(ended), event(counted), END)

    async with fakes(one), remote(one) as engine:
        one.always = answer
        with_tools = await ask(engine, "a", 20, **ASKING).end()
        one.always = None
        without = await ask(engine, "b", 2).end()
    assert len(with_tools.prompt_ids) == 3, "as another upstream may count it"
    assert (with_tools.late_prompt_tokens, with_tools.cached_tokens) == (40, 30)
    assert (len(without.prompt_ids), without.late_prompt_tokens) == (3, 0)
