"""OpenAI's first form of tools, `functions` and `function_call`, as its own client speaks it."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.calling import BOTH, CALLS, HELLO, client_of, create, ends_of, name_of
from tests.support.openai_wire import CHAT, RESUMABLE
from tests.support.raw import ask, frames_of, post, request
from tests.support.servers import RunningServer, serve
from tests.support.templates import TOOLS

FUNCTIONS: Any = [each["function"] for each in BOTH]
NAMED: Any = {"name": "get_weather"}
# As `CALLS`, in the first form.
ASKS: dict[str, Any] = {
    "messages": HELLO,
    "functions": FUNCTIONS,
    "temperature": 0,
    "logit_bias": CALLS["logit_bias"],
}


@pytest.fixture(scope="module")
def caller() -> Iterator[RunningServer]:
    with serve(slots=2, engine_arg=[f"chat_template={TOOLS}"]) as server:
        yield server


def called_in(chunks: list[Any]) -> tuple[str, str]:
    """Return the name and the arguments that the chunks add up to. Only the first has the name."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    parts = [delta.function_call for delta in deltas if delta.function_call is not None]
    assert [part.name for part in parts[1:]] == [None] * (len(parts) - 1)
    assert not any(delta.tool_calls or delta.content for delta in deltas)
    return parts[0].name, "".join(part.arguments for part in parts)


@pytest.mark.parametrize("choice", ["auto", NAMED], ids=str)
def test_a_call_is_what_the_same_tools_give(caller: RunningServer, choice: Any) -> None:
    new = {"type": "function", "function": choice} if choice == NAMED else choice
    (same,) = create(caller, **CALLS, tool_choice=new).choices[0].message.tool_calls
    whole = create(caller, **ASKS, function_call=choice).choices[0]
    chunks = create(caller, **ASKS, function_call=choice, stream=True)
    assert whole.finish_reason == "function_call"
    assert ends_of(chunks) == [(0, "function_call")]
    assert (whole.message.content, whole.message.tool_calls) == (None, None)
    call = whole.message.function_call
    assert called_in(chunks) == (call.name, call.arguments)
    assert (call.name, call.arguments) == (same.function.name, same.function.arguments)
    assert len(chunks) > 5  # the call is streamed as it is generated


def test_a_function_that_is_named_is_called_whatever_the_model_would_say(
    caller: RunningServer,
) -> None:
    unbiased = {name: value for name, value in ASKS.items() if name != "logit_bias"}
    fields = {**unbiased, "function_call": NAMED, "temperature": 1}
    for seed in range(3):
        choice = create(caller, **fields, seed=seed).choices[0]
        assert choice.message.function_call.name == "get_weather"
        assert set(json.loads(choice.message.function_call.arguments)) == {"city", "days"}


def test_the_model_may_answer_instead(caller: RunningServer) -> None:
    fields: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 9}
    plain = create(caller, **fields)
    for choice in ("auto", "none"):
        answer = create(caller, **fields, functions=FUNCTIONS, function_call=choice)
        assert answer.choices[0].message.function_call is None
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        is_shown = answer.usage.prompt_tokens > plain.usage.prompt_tokens
        assert is_shown == (choice == "auto")


def test_a_call_that_is_cut_says_so(caller: RunningServer) -> None:
    choice = create(caller, **ASKS, max_tokens=60).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.function_call.arguments.startswith("{")


def test_a_conversation_goes_on_with_what_the_function_said(caller: RunningServer) -> None:
    message = create(caller, **ASKS).choices[0].message
    result = {"role": "function", "name": message.function_call.name, "content": "It is noon."}
    fields: dict[str, Any] = {"functions": FUNCTIONS, "max_tokens": 8, "temperature": 0}
    before = create(caller, **fields, messages=HELLO)
    after = create(caller, **fields, messages=[*HELLO, message.to_dict(), result])
    assert after.usage.prompt_tokens > before.usage.prompt_tokens + 10
    assert after.choices[0].message.content


def test_every_event_can_be_resumed_from(caller: RunningServer) -> None:
    sent = json.dumps({**ASKS, "model": name_of(caller), "stream": True}).encode()
    answer = ask(caller.port, post(sent, RESUMABLE, path=CHAT))
    frames = frames_of(answer.body)
    assert b"function_call" in answer.body
    for last in range(len(frames) - 1):
        path = f"/streams/{answer.headers['x-stream-id']}"
        rest = ask(caller.port, request("GET", path, f"Last-Event-ID: {last}"))
        assert frames_of(rest.body) == frames[last + 1 :]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": FUNCTIONS, "tools": BOTH}, "functions"),
        ({"functions": [FUNCTIONS[0]] * 2}, "functions"),
        ({"functions": FUNCTIONS, "function_call": {"name": "zqxj"}}, "function_call"),
        ({"function_call": NAMED}, "function_call"),
        ({"functions": [{"parameters": {}}]}, "functions[0].name"),
    ],
    ids=str,
)
def test_what_cannot_be_called_is_refused(
    caller: RunningServer, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused, client_of(caller) as client:
        client.chat.completions.create(model=name_of(caller), messages=HELLO, **fields)
    assert refused.value.param == param


@pytest.mark.parametrize("fields", [{"functions": FUNCTIONS}, {"function_call": "auto"}], ids=str)
def test_a_strict_server_asks_for_the_form_of_today(fields: dict[str, Any]) -> None:
    with serve("--strict", engine="mock", mock_interval=0) as server, client_of(server) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="mock", messages=HELLO, **fields)
        assert (refused.value.code, refused.value.param) == (
            "unsupported_field",
            next(iter(fields)),
        )
