"""Streams of Anthropic's API: resume, cancel, the engine's death, signs of life, and errors."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from penstock.web.keys import key_table, new_key
from tests.support.anthropic_wire import (
    COUNT_TOKENS,
    HELLO,
    MESSAGES,
    TIME,
    answer_to,
    asks,
    client_of,
    create,
    events_of,
    text_of,
    types_of,
)
from tests.support.concluding import serve_thinker
from tests.support.dying import mortal
from tests.support.openai_wire import RESUMABLE
from tests.support.raw import Connection, ask, cancel_stream, frames_of, post, request, resume
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING

ADAPTIVE = {"type": "adaptive"}


@pytest.fixture(scope="module")
def thinker() -> Iterator[RunningServer]:
    """A model that thinks in small letters and answers in capitals."""
    with serve_thinker() as running:
        yield running


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningServer]:
    """A server with one slot, whose answers hang after three tokens."""
    arguments = ["hang_at=3", "slots=1"]
    with serve(
        engine="mock", mock_interval=0, max_queue=1, model_name="rill", engine_arg=arguments
    ) as running:
        yield running


def begin(server: RunningServer, *headers: str, **fields: Any) -> tuple[Connection, str, bytes]:
    """Begin a stream and read it to its first text. Returns the connection, the id and the body."""
    connection = Connection(server.port).send(asks(*headers, stream=True, **fields))
    head = connection.head()
    assert head.status == 200
    body = b""
    while b"text_delta" not in body:
        body += connection.chunk()
    return connection, head.headers["x-stream-id"], body


# Resume and cancel.


def test_a_stream_is_resumed_byte_for_byte_from_every_event(thinker: RunningServer) -> None:
    answer = answer_to(thinker, RESUMABLE, stream=True, thinking=ADAPTIVE, temperature=0)
    frames = frames_of(answer.body)
    types = types_of(answer.body)
    assert types.count("content_block_start") == 2
    stream_id = answer.headers["x-stream-id"]
    for number, frame in enumerate(frames):
        assert frame.startswith(f"id: {stream_id}.{number}\nevent: ".encode())
        rest = resume(thinker.port, stream_id, f"Last-Event-ID: {number}")
        assert frames_of(rest.body) == frames[number + 1 :]
        assert rest.status == (204 if number == len(frames) - 1 else 200)
    last = f"Last-Event-ID: {len(frames)}"
    assert resume(thinker.port, stream_id, last).status == 400


def test_a_running_stream_is_resumed_and_cancelled(hanging: RunningServer) -> None:
    connection, stream_id, body = begin(hanging, RESUMABLE)
    with connection:
        late: list[Any] = []
        reader = threading.Thread(
            target=lambda: late.append(resume(hanging.port, stream_id, "Last-Event-ID: 1"))
        )
        reader.start()
        assert cancel_stream(hanging.port, stream_id) == "cancelled"
        body += connection.rest()
        reader.join()
    frames = frames_of(body)
    assert frames_of(late[0].body) == frames[2:]
    ending = events_of(body)[-2]
    assert ending["delta"] == {
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "finish_reason": "cancelled",
    }
    assert types_of(body)[-1] == "message_stop"


def test_a_stream_whose_client_leaves_is_cancelled(hanging: RunningServer) -> None:
    connection, _, _ = begin(hanging)
    connection.close()
    second, _, _ = begin(hanging)  # there is one slot
    second.close()


# The engine's death.


def test_text_goes_on_after_the_engine_s_death(tmp_path: Path) -> None:
    body = asks(RESUMABLE, stream=True, temperature=0, max_tokens=60)
    with mortal(tmp_path, model_name="rill") as server:
        whole = server.undisturbed(body)
        cut = server.cut_off(body)
        rest = resume(server.running.port, cut.headers["x-stream-id"], "Last-Event-ID: 2")
    assert text_of(cut.body) == text_of(whole.body) != ""
    assert types_of(cut.body) == types_of(whole.body)
    assert frames_of(rest.body) == frames_of(cut.body)[3:]
    ends = [events_of(each.body)[-2] for each in (whole, cut)]
    assert ends[0]["delta"] == ends[1]["delta"]
    assert ends[0]["usage"]["output_tokens"] == ends[1]["usage"]["output_tokens"]


def test_thinking_goes_on_after_the_engine_s_death(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"thinking": ADAPTIVE, "temperature": 0, "max_tokens": 60}
    with mortal(tmp_path, f"chat_template={REASONING}", model_name="rill") as server:
        whole = server.undisturbed(asks(stream=True, **fields)).body
        cut = server.cut_off(asks(stream=True, **fields)).body
    assert text_of(cut) == text_of(whole) != ""
    assert types_of(cut) == types_of(whole)
    deltas = [event.get("delta", {}) for event in events_of(cut)]
    signatures = [delta["signature"] for delta in deltas if "signature" in delta]
    expected = [event.get("delta", {}) for event in events_of(whole)]
    assert signatures == [delta["signature"] for delta in expected if "signature" in delta]


def test_a_call_that_was_shown_ends_with_an_error_that_may_be_retried(tmp_path: Path) -> None:
    endless = {"type": "array", "items": {"type": "integer"}, "minItems": 10_000}
    schema = {"type": "object", "properties": {"a": endless}, "required": ["a"]}
    fields: dict[str, Any] = {
        "tools": [{"name": "f", "input_schema": schema}],
        "tool_choice": {"type": "any"},
        "max_tokens": 400,
    }
    with mortal(tmp_path, after=60, model_name="rill") as server:
        *_, end = events_of(server.cut_off(asks(stream=True, **fields)).body)
    assert end["type"] == "error"
    error = end["error"]
    assert (error["type"], error["code"]) == ("overloaded_error", "engine_died")
    assert error["retry_safe"] is True


def test_anthropic_s_client_raises_a_failure_in_a_stream() -> None:
    with (
        serve(engine="mock", mock_interval=0, engine_arg="fail_at=2") as server,
        client_of(server) as client,
        client.messages.stream(model="mock", messages=HELLO, max_tokens=9) as stream,
    ):
        with pytest.raises(anthropic.APIStatusError, match="told to fail") as failed:
            stream.get_final_message()
        assert failed.value.body["error"]["type"] == "api_error"  # type: ignore[index] # JSON
        with pytest.raises(anthropic.InternalServerError):
            create(server, model="mock")


def test_pings_keep_a_silent_stream_alive() -> None:
    flags: dict[str, Any] = {"engine": "mock", "mock_interval": 0.1, "heartbeat": 0.02}
    with serve(**flags, engine_arg="prefill=600") as server:
        for headers in ([], [RESUMABLE]):
            asked = asks(*headers, model="mock", stream=True)
            with Connection(server.port).send(asked) as connection:
                stream_id = connection.head().headers["x-stream-id"]
                body = b""
                while body.count(b"event: ping") < 5:
                    body += connection.chunk()
                cancel_stream(server.port, stream_id)
                types = [event["type"] for event in events_of(body + connection.rest())]
            assert types[:5] == ["ping"] * 5
            assert types[-1] == "message_stop"
    with (
        serve(**flags, engine_arg=["prefill=1", "length=2"]) as server,
        client_of(server) as client,
        client.messages.stream(model="mock", messages=HELLO, max_tokens=9) as stream,
    ):
        assert stream.get_final_text() == " Water comes"


# Errors.

MARK, INVALID = "zqxj", "invalid_request_error"


def turn(*blocks: Any) -> bytes:
    return asks(messages=[{"role": "user", "content": list(blocks)}])


@pytest.mark.parametrize(
    ("sent", "status", "kind", "code"),
    [
        (post(b"", path=MESSAGES), 400, INVALID, "invalid_json"),
        (post(b'{"a":"zqxj\xff"}', path=COUNT_TOKENS), 400, INVALID, "invalid_utf8"),
        (post(b'["zqxj"]', path=MESSAGES), 400, INVALID, "not_an_object"),
        (asks(max_tokens=0), 400, INVALID, "out_of_range"),
        (asks(max_tokens=MARK), 400, INVALID, "invalid_type"),
        (asks(messages=[]), 400, INVALID, "too_few_items"),
        (asks(messages=[{"role": MARK}]), 400, INVALID, "invalid_value"),
        (asks(messages=[{"content": MARK}]), 400, INVALID, "missing_field"),
        (asks(messages=[MARK]), 400, INVALID, "invalid_type"),
        (asks(system=[{"type": MARK}]), 400, INVALID, "invalid_value"),
        (asks(system={"text": MARK}), 400, INVALID, "invalid_type"),
        (asks(tools=MARK), 400, INVALID, "invalid_type"),
        (asks(tools=[{"name": MARK}]), 400, INVALID, "missing_field"),
        (asks(tool_choice={"type": MARK}), 400, INVALID, "invalid_value"),
        (asks(tool_choice={"type": "any"}), 400, INVALID, "invalid_value"),
        (asks(thinking={"type": MARK}), 400, INVALID, "invalid_value"),
        (asks(stop_sequences=[MARK * 100]), 400, INVALID, "too_long"),
        (turn({"type": "image", "source": {"data": MARK}}), 400, INVALID, "invalid_value"),
        (turn({"type": "document", "source": {"type": "base64"}}), 400, INVALID, "invalid_value"),
        (turn({"type": MARK}), 400, INVALID, "invalid_value"),
        (turn({"type": "text", "text": 5}), 400, INVALID, "invalid_type"),
        (asks(model=MARK), 404, "not_found_error", "model_not_found"),
        (asks(path="/v1/messages/batches"), 404, "not_found_error", "no_such_route"),
        (request("GET", MESSAGES), 405, INVALID, "method_not_allowed"),
        (request("POST", MESSAGES, "Content-Length: 99999999", "Content-Type: application/json"),
         413, "request_too_large", "body_too_large"),
        (request("POST", MESSAGES, "Content-Type: text/plain"),
         415, INVALID, "unsupported_media_type"),
        (asks("X-Penstock-Resumable: true"), 400, INVALID, "invalid_value"),
    ],
)  # fmt: skip
def test_errors_have_anthropic_s_form_and_echo_nothing(
    hanging: RunningServer, sent: bytes, status: int, kind: str, code: str
) -> None:
    answer = ask(hanging.port, sent)
    body = answer.json()
    assert (answer.status, body["type"]) == (status, "error")
    assert (body["error"]["type"], body["error"]["code"]) == (kind, code)
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] == "false"
    assert MARK.encode() not in answer.body


def test_a_full_queue_is_an_overload(hanging: RunningServer) -> None:
    first, _, _ = begin(hanging)
    with first, Connection(hanging.port).send(asks(stream=True)) as second:
        assert second.head().status == 200
        answer = answer_to(hanging, stream=True)
        assert answer.status == 529
        assert answer.json()["error"]["type"] == "overloaded_error"
        assert answer.headers["x-should-retry"] == "true"
        assert int(answer.headers["retry-after"]) > 0
        with pytest.raises(anthropic.InternalServerError) as refused:
            create(hanging)
        assert refused.value.status_code == 529


def test_keys_and_their_limits(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "keys.toml").write_text(key_table("ann", key, is_admin=False) + "\nmax_streams = 1")
    with serve(
        engine="mock", mock_interval=0, keys=tmp_path / "keys.toml", engine_arg="hang_at=3"
    ) as server:
        for wrong in ("none", new_key()):
            with client_of(server, wrong) as client, pytest.raises(anthropic.AuthenticationError):
                client.models.list()
        with client_of(server, key) as client:
            asked: Any = {"model": "mock", "messages": HELLO, "max_tokens": 9}
            with client.messages.stream(**asked) as stream:
                next(iter(stream))
                with pytest.raises(anthropic.RateLimitError) as limited:
                    client.messages.create(**asked)
        assert limited.value.body["error"]["code"] == "too_many_streams"  # type: ignore[index] # JSON
        headers = [f"X-API-Key: {key}x", "anthropic-version: 2023-06-01"]
        refused = ask(server.port, request("GET", "/v1/models", *headers))
        assert refused.json()["error"]["type"] == "authentication_error"


# A strict server.


def test_a_strict_server_refuses_what_it_would_leave_out() -> None:
    with serve("--strict", slots=2) as server:
        whole = create(server, max_tokens=3)
        answer = [{"type": "text", "text": whole.content[0].text}]
        thought = {"type": "thinking", "thinking": "Hm.", "signature": "bm8="}
        right: list[dict[str, Any]] = [
            {"messages": [*HELLO, {"role": "assistant", "content": answer}, *HELLO]},
            {"system": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
            {"metadata": {"user_id": "a"}, "service_tier": "auto", "cache_control": None},
            {"tools": [{**TIME, "cache_control": {"type": "ephemeral"}}]},
        ]
        wrong: list[dict[str, Any]] = [
            {"zqxj": 1},
            {"model": "claude-opus-4-8"},
            {"max_tokens": 64000},
            {"context_management": {"edits": []}},
            {"output_config": {"effort": "high", "zqxj": 1}},
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "zqxj": 1}]}]},
            {"messages": [*HELLO, {"role": "assistant", "content": [thought]}, *HELLO]},
            {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]},
        ]
        for fields in right:
            response = answer_to(server, **{"max_tokens": 3, **fields})
            assert response.status == 200, response.body
            assert "x-penstock-ignored" not in response.headers
        for fields in wrong:
            response = answer_to(server, **{"max_tokens": 3, **fields})
            assert response.status == (404 if "model" in fields else 400), fields
            assert json.loads(response.body)["type"] == "error"
