"""OpenAI's Responses API, as OpenAI's own client and plain HTTP speak it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from penstock.web.keys import key_table, new_key
from tests.support.calling import client_of
from tests.support.dying import mortal
from tests.support.openai_wire import RESUMABLE, begin
from tests.support.raw import ask, frames_of, post, request
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING
from tests.support.waiting import eventually

PATH = "/v1/responses"
# No two tokens of this answer are almost equally likely, whatever the cache has.
STORY: dict[str, Any] = {"input": "How are you?", "max_output_tokens": 12, "temperature": 0}
PLACE = {"type": "object", "properties": {"a": {"enum": ["lake"]}}, "required": ["a"]}
LOOK: Any = {"type": "function", "name": "look", "parameters": PLACE}
SAY: Any = {
    "type": "custom",
    "name": "say",
    "format": {"type": "grammar", "syntax": "regex", "definition": "ab [0-9]{2}"},
}
MCP: Any = {"type": "namespace", "name": "mcp__a__", "description": "A.", "tools": [LOOK]}
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(slots=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def slow() -> Iterator[RunningServer]:
    with serve(engine="mock", mock_interval=0.02, engine_arg=["length=10000"]) as running:
        yield running


def respond(**fields: Any) -> bytes:
    return post(json.dumps({**STORY, **fields}).encode(), path=PATH)


def events_in(body: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream; each has OpenAI's type and the next number."""
    events = []
    for number, frame in enumerate(frames_of(body)):
        lines = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
        data = json.loads(lines["data"])
        assert (lines["event"], number) == (data["type"], data["sequence_number"])
        _EVENT.validate_python(data)
        events.append(data)
    return events


def texts_of(events: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["delta"] for event in events if event["type"] == kind + ".delta")


def test_the_events_form_the_whole_response(server: RunningServer) -> None:
    events = events_in(ask(server.port, respond(stream=True)).body)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    final = events[-1]["response"]
    whole = ask(server.port, respond()).json()
    Response.model_validate(whole)
    text = texts_of(events, "response.output_text")
    assert events[-4]["text"] == text
    for response in (final, whole):
        assert response["output"][0]["content"][0]["text"] == text
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["usage"]["output_tokens"] == 12
    assert final["usage"]["input_tokens"] == whole["usage"]["input_tokens"] > 5


def test_an_answer_that_ends_by_itself_is_completed(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="rill", input="Hi", top_p=0.01)
    assert answer.status == "completed"
    assert answer.output_text


def test_what_the_request_says_comes_back(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"instructions": "Be nice.", "metadata": {"a": "b"}, "top_p": 0.5}
    answer = client.responses.create(model="rill", input="Hi", max_output_tokens=3, **asked)
    shown = answer.model_dump()
    assert {name: shown[name] for name in asked} == asked
    assert (answer.max_output_tokens, answer.background, answer.model) == (3, False, "rill")


def test_every_number_gives_the_rest_byte_for_byte(server: RunningServer) -> None:
    first = post(json.dumps({**STORY, "stream": True}).encode(), RESUMABLE, path=PATH)
    answer = ask(server.port, first)
    frames = frames_of(answer.body)
    stream_id = answer.headers["x-stream-id"]
    assert all(f"id: {stream_id}.{n}\n".encode() in frame for n, frame in enumerate(frames))
    for last in range(len(frames) - 1):
        path = f"{PATH}/resp_{stream_id}?stream=true&starting_after="
        for after in (f"{last}", f"{stream_id}.{last}"):
            rest = ask(server.port, request("GET", path + after))
            assert frames_of(rest.body) == frames[last + 1 :]
        rest = ask(server.port, request("GET", f"/streams/{stream_id}", f"Last-Event-ID: {last}"))
        assert frames_of(rest.body) == frames[last + 1 :]
    path = f"{PATH}/resp_{stream_id}?stream=true"
    assert frames_of(ask(server.port, request("GET", path)).body) == frames


def test_a_call_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    asked: Any = {"model": "rill", "input": "Hi", "tools": [LOOK], "tool_choice": "required"}
    (called,) = client.responses.create(**asked).output
    assert called.type == "function_call"
    assert (called.name, json.loads(called.arguments)) == ("look", {"a": "lake"})
    with client.responses.stream(**asked) as stream:
        events = [*stream]
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert (streamed.name, streamed.arguments) == (called.name, called.arguments)
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    assert "".join(deltas) == called.arguments


def test_a_custom_tool_gets_text(server: RunningServer) -> None:
    choice = {"type": "custom", "name": "say"}
    sent = respond(tools=[LOOK, SAY], tool_choice=choice, max_output_tokens=90, stream=True)
    events = events_in(ask(server.port, sent).body)
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["name"]) == ("custom_tool_call", "say")
    assert item["input"][:3] == "ab "
    assert item["input"][3:].isdigit()
    assert texts_of(events, "response.custom_tool_call_input") == item["input"]


def test_a_namespace_s_tool_keeps_its_name(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "name": "look", "namespace": "mcp__a__"}
    asked: Any = {"model": "rill", "input": "Hi", "tools": [SAY, MCP], "tool_choice": choice}
    (called,) = client.responses.create(**asked).output
    assert called.type == "function_call"
    assert (called.name, called.namespace) == ("look", "mcp__a__")


def test_a_conversation_goes_on_from_items_or_from_an_id(client: openai.OpenAI) -> None:
    asked: Any = {"model": "rill", "tools": [LOOK], "temperature": 0, "max_output_tokens": 10}
    first = client.responses.create(
        **{**asked, "max_output_tokens": 90}, input="Hi", tool_choice="required"
    )
    (called,) = first.output
    assert called.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": called.call_id, "output": "Deep."}
    sent: Any = [{"role": "user", "content": "Hi"}, called.model_dump(exclude_none=True), result]
    by_items = client.responses.create(**asked, input=sent, tool_choice="none")
    by_id = client.responses.create(
        **asked, input=[result], previous_response_id=first.id, tool_choice="none"
    )
    assert called.id is not None
    reference: Any = {"type": "item_reference", "id": called.id}
    by_reference = client.responses.create(
        **asked, input=[sent[0], reference, result], tool_choice="none"
    )
    assert by_items.output_text == by_id.output_text == by_reference.output_text
    assert by_items.usage is not None
    assert by_id.usage is not None
    assert by_items.usage.input_tokens == by_id.usage.input_tokens
    # The chain goes on.
    third = client.responses.create(**asked, input="More.", previous_response_id=by_id.id)
    assert third.usage is not None
    assert third.usage.input_tokens > by_id.usage.input_tokens


def test_an_answer_follows_its_schema(client: openai.OpenAI) -> None:
    class Lake(BaseModel):
        is_deep: bool

    answer = client.responses.parse(model="rill", input="Hi", text_format=Lake)
    assert isinstance(answer.output_parsed, Lake)


def test_log_probabilities_come_with_the_text(client: openai.OpenAI) -> None:
    # By chance, an answer may hold a token that is no character, which has another name.
    asked: Any = {"model": "rill", "input": "Hi", "temperature": 0}
    answer = client.responses.create(
        **asked, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    (message,) = answer.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(each.token for each in part.logprobs).startswith(part.text)
    assert all(len(each.top_logprobs) == 2 for each in part.logprobs)


def test_reasoning_is_an_item_and_comes_back() -> None:
    with serve(engine_arg=[f"chat_template={REASONING}"]) as server:
        sent: dict[str, Any] = {"include": ["reasoning.encrypted_content"], "store": False}
        body = {**sent, "thinking_budget": 3, "ignore_eos": True, "stream": True}
        events = events_in(ask(server.port, respond(**body)).body)
        final = events[-1]["response"]
        reasoning, message = final["output"]
        thought = texts_of(events, "response.reasoning_text")
        assert thought == reasoning["content"][0]["text"] != ""
        assert message["content"][0]["text"]
        assert final["usage"]["output_tokens_details"]["reasoning_tokens"] > 0

        def num_tokens(**item: Any) -> int:
            turn = [{"role": "user", "content": "Hi"}, {"type": "reasoning", **item}, message]
            answer = ask(server.port, respond(input=turn, max_output_tokens=1)).json()
            return int(answer["usage"]["input_tokens"])

        sealed = num_tokens(summary=[], encrypted_content=reasoning["encrypted_content"])
        assert sealed == num_tokens(content=reasoning["content"]) > num_tokens(summary=[])
        # Nothing was stored.
        assert ask(server.port, request("GET", f"{PATH}/{final['id']}")).status == 404


def test_a_response_in_the_background_goes_on_without_its_client(slow: RunningServer) -> None:
    body = {"background": True, "max_output_tokens": 200}
    begun = ask(slow.port, respond(**body)).json()
    path = f"{PATH}/{begun['id']}"
    assert begun["status"] in ("queued", "in_progress")

    def now() -> dict[str, Any]:
        found: dict[str, Any] = ask(slow.port, request("GET", path)).json()
        return found

    assert eventually(lambda: now()["status"] == "incomplete")
    final = now()
    Response.model_validate(final)
    assert final["usage"]["output_tokens"] == 200
    events = events_in(ask(slow.port, request("GET", path + "?stream=true")).body)
    assert events[-1]["response"] == final
    assert ask(slow.port, request("DELETE", path)).json()["deleted"] is True
    assert ask(slow.port, request("GET", path)).status == 404


def test_a_response_in_the_background_can_be_cancelled(slow: RunningServer) -> None:
    body = {"background": True, "stream": True, "max_output_tokens": 5000}
    connection, stream_id = begin(slow, respond(**body))
    connection.close()
    path = f"{PATH}/resp_{stream_id}"
    running = ask(slow.port, request("GET", path)).json()
    assert running["status"] == "in_progress"
    assert running["output"][0]["status"] == "in_progress"
    cancelled = ask(slow.port, request("POST", path + "/cancel", "Content-Length: 0")).json()
    assert cancelled["status"] == "cancelled"
    assert ask(slow.port, request("GET", path)).json()["status"] == "cancelled"
    plain = ask(slow.port, respond(max_output_tokens=1)).json()["id"]
    refused = ask(slow.port, request("POST", f"{PATH}/{plain}/cancel", "Content-Length: 0"))
    assert refused.status == 400


def test_the_input_s_items_come_in_pages(server: RunningServer) -> None:
    turns = [{"role": "user", "content": f"{number}"} for number in range(5)]
    response_id = ask(server.port, respond(input=turns, max_output_tokens=1)).json()["id"]

    def page(query: str) -> dict[str, Any]:
        sent = request("GET", f"{PATH}/{response_id}/input_items?{query}")
        found: dict[str, Any] = ask(server.port, sent).json()
        return found

    first = page("order=asc&limit=3")
    assert [item["content"] for item in first["data"]] == ["0", "1", "2"]
    assert first["has_more"] is True
    rest = page(f"order=asc&after={first['last_id']}")
    assert [item["content"] for item in rest["data"]] == ["3", "4"]
    assert rest["has_more"] is False
    assert [item["content"] for item in page("limit=1")["data"]] == ["4"]
    assert page("limit=0")["error"]["param"] == "limit"


def test_a_stored_response_belongs_to_its_key(tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("alice", "bob")}
    file = tmp_path / "keys.toml"
    file.write_text("\n".join(key_table(name, key, is_admin=False) for name, key in keys.items()))
    with serve(engine="mock", mock_interval=0, keys=file) as server:
        alice, bob = (f"Authorization: Bearer {key}" for key in keys.values())
        body = json.dumps(STORY).encode()
        response_id = ask(server.port, post(body, alice, path=PATH)).json()["id"]
        for path, status in ((f"{PATH}/{response_id}", 200), (f"{PATH}/resp_zqxj", 404)):
            assert ask(server.port, request("GET", path, alice)).status == status
            assert ask(server.port, request("GET", path, bob)).status == 404
        more = {**STORY, "previous_response_id": response_id}
        assert ask(server.port, post(json.dumps(more).encode(), bob, path=PATH)).status == 404


def test_the_oldest_response_of_the_largest_owner_makes_room() -> None:
    with serve(engine="mock", mock_interval=0, retain_responses_bytes=20_000) as server:
        text = "a" * 6_000
        ids = [ask(server.port, respond(input=text)).json()["id"] for _ in range(4)]

        def kept() -> list[bool]:
            return [ask(server.port, request("GET", f"{PATH}/{i}")).status == 200 for i in ids]

        assert eventually(lambda: kept()[-1] and not kept()[0])


def test_a_response_survives_the_engine_s_death(tmp_path: Path) -> None:
    fields = {"max_output_tokens": 40, "ignore_eos": True, "stream": True}
    with mortal(tmp_path) as server:
        expected = events_in(server.undisturbed(respond(**fields)).body)
        events = events_in(server.cut_off(respond(**fields)).body)
    assert [event["type"] for event in events] == [event["type"] for event in expected]
    text = texts_of(events, "response.output_text")
    assert text == texts_of(expected, "response.output_text") != ""
    assert events[-1]["response"]["usage"]["output_tokens"] == 40


def test_a_failed_response_says_why() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=["fail_at=3"]) as server:
        *_, last = events_in_failure(ask(server.port, respond(stream=True)).body)
        assert last["type"] == "response.failed"
        assert last["response"]["status"] == "failed"
        assert last["response"]["error"]["retry_safe"] is True
        whole = ask(server.port, respond())
        assert whole.status == 500
        assert whole.json()["error"]["type"] == "server_error"


def events_in_failure(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(frame.decode().partition("data: ")[2]) for frame in frames_of(body)]


def test_a_prompt_that_is_too_long_has_the_code_that_agents_look_for(
    server: RunningServer,
) -> None:
    answer = ask(server.port, respond(input="word " * 5000, stream=True))
    assert answer.status == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
