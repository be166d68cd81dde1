"""Conversations with OpenAI's own client, over llama.cpp and templates that refuse many turns."""

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.calling import (
    BOTH,
    CALLS,
    HELLO,
    client_of,
    conversation_is_answered,
    conversation_is_refused,
    create,
    name_of,
)
from tests.support.conversations import CONVERSATIONS, USER, turn
from tests.support.openai_wire import CHAT
from tests.support.raw import Connection, ask, frames_of, post
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.templates import GEMMA, LLAMA, MISTRAL, PHI, PICKY, QWEN, TOOLS
from training.text.template import CHAT_TEMPLATE

TEMPLATES = {
    "rill": CHAT_TEMPLATE,
    "tools": TOOLS,
    "gemma": GEMMA,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen": QWEN,
    "phi": PHI,
}


@pytest.fixture(scope="module", params=TEMPLATES)
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with serve(slots=2, engine_arg=[f"chat_template={TEMPLATES[request.param]}"]) as server:
        yield server


@pytest.fixture(scope="module")
def caller() -> Iterator[RunningServer]:
    with serve(slots=2, engine_arg=[f"chat_template={TOOLS}"]) as server:
        yield server


QUEUED: dict[str, dict[str, Any]] = {
    "/generate": {"messages": [USER, USER]},
    CHAT: {"messages": [USER, USER]},
    "/v1/messages": {"messages": [USER, USER]},
    "/v1/responses": {"input": [USER, USER]},
}


@pytest.mark.parametrize("path", QUEUED)
def test_what_is_left_out_of_a_queued_request_stands_in_its_last_event(path: str) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {**QUEUED[path], "stream": True, limit: 3}
    sent = post(json.dumps(body).encode(), path=path)
    with serve(slots=1, engine_arg=[f"chat_template={PICKY}"]) as server:
        at_once = ask(server.port, sent)
        assert "messages (merged)" in at_once.headers["x-penstock-ignored"]
        assert b'"ignored"' not in at_once.body
        os.kill(server.engine_pid(), signal.SIGSTOP)  # so that the slot stays taken
        with Connection(server.port).send(post(b'{"prompt":"Once","max_tokens":3}')):
            scrape_until(server, lambda scrape: scrape("penstock_streams_started_total") == 2)
            with Connection(server.port).send(sent) as queued:
                head = queued.head()
                assert "messages (merged)" not in head.headers.get("x-penstock-ignored", "")
                os.kill(server.engine_pid(), signal.SIGCONT)
                body_of = queued.rest()
    *_, last = (frame for frame in frames_of(body_of) if b"usage" in frame or b"finish" in frame)
    assert b'"ignored":["messages (merged)"]' in last


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_conversation_is_answered_whatever_the_template_refuses(
    server: RunningServer, name: str
) -> None:
    conversation_is_answered(server, name)


LONE = [
    ("system", "assistant"),
    ("assistant", "system"),
    ("system", "system", "assistant"),
    ("system", "assistant", "assistant"),
    ("system", "assistant", "user"),
]


@pytest.mark.parametrize("roles", LONE, ids="-".join)
def test_nothing_of_a_conversation_is_lost_without_a_user_before_the_answer(
    server: RunningServer, roles: tuple[str, ...]
) -> None:
    """llama.cpp drops a system turn that no other turn follows, if the template has none."""
    turns = [turn(role, f"zword{number}z") for number, role in enumerate(roles)]
    sent = post(json.dumps({"messages": turns}).encode(), path="/apply-template")
    prompt = json.loads(ask(server.port, sent).body)["prompt"]
    assert all(prompt.count(each["content"]) == 1 for each in turns)


def test_every_conversation_is_answered_with_tools(caller: RunningServer) -> None:
    for turns in CONVERSATIONS.values():
        assert create(caller, messages=turns, max_tokens=3, tools=BOTH).usage.prompt_tokens > 50


def test_a_conversation_that_a_template_refuses_is_the_client_s_error() -> None:
    with serve(slots=1, engine_arg=[f"chat_template={PICKY}"]) as server:
        conversation_is_refused(server)
        body = {"messages": [turn("user", "zqxj")]}
        native = ask(server.port, post(json.dumps(body).encode()))
        assert native.status == 422
        assert json.loads(native.body)["code"] == "template_refused"


def test_a_conversation_of_more_turns_than_the_context_has_tokens_is_refused_at_once(
    caller: RunningServer,
) -> None:
    body = json.dumps({"messages": [USER] * 60_000}).encode()
    began = time.monotonic()
    answer = ask(caller.port, post(body, path=CHAT))
    assert time.monotonic() - began < 30  # llama.cpp would render for minutes
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"]) == (400, "context_length_exceeded")
    assert "60000 messages" in error["message"]
    assert create(caller, messages=[turn("user", "")] * 250, max_tokens=1).choices


def test_what_openai_s_helpers_return_is_taken_back(caller: RunningServer) -> None:
    tools: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in BOTH]
    fields: dict[str, Any] = {**CALLS, "tools": tools}
    with client_of(caller) as client:
        model = name_of(caller)
        parsed = client.chat.completions.parse(model=model, **fields).choices[0].message
        with client.chat.completions.stream(model=model, **fields) as stream:
            streamed = stream.get_final_completion().choices[0].message
        for message in (parsed, streamed):
            assert message.tool_calls
            result = turn("tool", "It is noon.", tool_call_id=message.tool_calls[0].id)
            for sent in (message, message.to_dict(), message.model_dump()):
                turns: Any = [*HELLO, sent, result]
                create(caller, messages=turns, tools=BOTH, max_tokens=3)


def test_the_response_names_what_was_changed() -> None:
    with serve(slots=1, engine_arg=[f"chat_template={LLAMA}"]) as server:
        for stream in (False, True):
            for turns, ignored in (
                ([USER], None),
                ([USER, USER], "messages (merged)"),
                ([{**USER, "name": "a"}, USER], "messages[].name, messages (merged)"),
            ):
                body = {"messages": turns, "max_tokens": 3, "stream": stream}
                answer = ask(server.port, post(json.dumps(body).encode(), path=CHAT))
                assert answer.status == 200
                assert answer.headers.get("x-penstock-ignored") == ignored
