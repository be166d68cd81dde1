"""OpenAI's API on the wire: the bytes of streams that end, are cut, or are resumed."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.dying import mortal
from tests.support.openai_wire import CHAT, COMPLETIONS, DONE, RESUMABLE, begin, chunks_of
from tests.support.raw import (
    WAYS_TO_GO,
    Connection,
    Response,
    ask,
    cancel_stream,
    frames_of,
    post,
    request,
    resume,
)
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually
from tests.support.withheld import WITHHELD

HELLO = [{"role": "user", "content": "Hello"}]
USAGE = {"include_usage": True}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server whose answers have 12 quick tokens, and which keeps ended streams."""
    with serve(engine="mock", mock_interval=0.002, engine_arg=["length=12"]) as server:
        yield server


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningServer]:
    """A server with two slots whose answers hang after three tokens."""
    with serve(
        engine="mock", mock_interval=0, linger=60, engine_arg=["hang_at=3", "slots=2"]
    ) as server:
        yield server


def chat(*headers: str, **fields: Any) -> bytes:
    body = json.dumps({"messages": HELLO, "stream": True, **fields}).encode()
    return post(body, *headers, path=CHAT)


def complete(*headers: str, **fields: Any) -> bytes:
    body = json.dumps({"prompt": "Hello", "stream": True, **fields}).encode()
    return post(body, *headers, path=COMPLETIONS)


def ends_of(chunks: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [
        (choice["index"], choice["finish_reason"])
        for chunk in chunks
        for choice in chunk.get("choices", [])
        if choice["finish_reason"] is not None
    ]


def both_slots_are_free(server: RunningServer) -> bool:
    """True if two answers of one token come within a second."""
    data = complete(max_tokens=1, n=2, stream=False)
    with Connection(server.port, patience=1) as connection:
        try:
            return connection.send(data).response().status == 200
        except TimeoutError:
            return False


def read_on(server: RunningServer, stream_id: str, last_id: int | None = None) -> Response:
    headers = [] if last_id is None else [f"Last-Event-ID: {last_id}"]
    return resume(server.port, stream_id, *headers)


def test_a_stream_s_bytes_are_what_openai_sends(server: RunningServer) -> None:
    answer = ask(server.port, chat(max_tokens=2))
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, second, last = chunks_of(answer.body)
    constant = {
        "id": "chatcmpl-" + answer.headers["x-stream-id"],
        "object": "chat.completion.chunk",
        "created": first["created"],
        "model": "mock",
    }
    rest = {"index": 0, "logprobs": None, "finish_reason": None}
    assert abs(first["created"] - time.time()) < 60
    assert first == {
        **constant,
        "choices": [{**rest, "delta": {"role": "assistant", "content": " Water"}}],
    }
    assert second == {**constant, "choices": [{**rest, "delta": {"content": " comes"}}]}
    assert last == {**constant, "choices": [{**rest, "delta": {}, "finish_reason": "length"}]}


def test_no_ids_unless_they_are_asked_for(server: RunningServer) -> None:
    for data in (chat(), complete(), chat("X-Penstock-Resumable: false")):
        assert b"id: " not in ask(server.port, data).body


def test_a_token_comes_before_the_next_one_is_made(hanging: RunningServer) -> None:
    connection, stream_id = begin(hanging, complete())
    with connection:
        cancel_stream(hanging.port, stream_id)


def test_a_cancelled_answer_has_finish_reason_length(hanging: RunningServer) -> None:
    """Clients know `length` as the reason of an incomplete answer."""
    connection, stream_id = begin(hanging, chat(stream_options=USAGE))
    with connection:
        cancel_stream(hanging.port, stream_id)
        body = connection.rest()
    *_, last, usage = chunks_of(body)
    (choice,) = last["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "cancelled")
    # The cancel may overtake the tokens after the first.
    assert 1 <= usage["usage"]["completion_tokens"] <= 3


def test_cancelling_one_choice_ends_all_of_them_and_each_once(hanging: RunningServer) -> None:
    connection, stream_id = begin(hanging, chat(n=2))
    with connection:
        cancel_stream(hanging.port, stream_id)
        body = connection.rest()
    assert sorted(ends_of(chunks_of(body))) == [(0, "length"), (1, "length")]
    assert eventually(lambda: both_slots_are_free(hanging))


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("go", WAYS_TO_GO.values(), ids=WAYS_TO_GO)
def test_a_client_that_leaves_frees_the_slots_of_all_choices(
    hanging: RunningServer, go: Callable[[Connection], None], stream: bool
) -> None:
    assert eventually(lambda: both_slots_are_free(hanging))
    with Connection(hanging.port) as victim:
        victim.send(chat(n=2, stream=stream))
        assert eventually(lambda: not both_slots_are_free(hanging))
        go(victim)
        assert eventually(lambda: both_slots_are_free(hanging))


def test_a_choice_that_fails_ends_the_response_with_one_error() -> None:
    with serve(engine="mock", mock_interval=0.001, engine_arg=["fail_at=3", "slots=1"]) as server:
        for n in (1, 2):
            body = ask(server.port, chat(n=n, stream_options=USAGE)).body
            *chunks, end = chunks_of(body)
            assert ends_of(chunks) == []
            assert end["error"] == {
                "message": "The mock engine was told to fail at this token.",
                "type": "server_error",
                "param": None,
                "code": "mock_failure",
                "retry_safe": True,
            }
        answer = ask(server.port, chat(n=2, stream=False))
        assert answer.status == 500
        error = answer.json()["error"]
        assert (error["code"], error["retry_safe"]) == ("mock_failure", True)
        assert ask(server.port, complete(max_tokens=1, stream=False)).status == 200


def test_draining_ends_a_stream_with_an_error_object() -> None:
    with serve(engine="mock", mock_interval=0, drain_timeout=0.2, engine_arg=["hang_at=2"]) as s:
        connection, _ = begin(s, chat())
        with connection:
            s.signal(signal.SIGTERM)
            body = connection.rest()
        *_, end = chunks_of(body)
        assert end["error"]["code"] == "server_shutdown"
        assert end["error"]["retry_safe"] is True
        s.process.wait(30)


# Resumable streams.


def test_every_frame_has_an_id_and_any_cursor_gives_the_rest_byte_for_byte(
    server: RunningServer,
) -> None:
    for data in (
        chat(RESUMABLE, stream_options={**USAGE, "continuous_usage_stats": True}),
        chat(RESUMABLE, stream_options=USAGE),
        complete(RESUMABLE, echo=True),
        complete(RESUMABLE, max_tokens=1),
    ):
        answer = ask(server.port, data)
        stream_id = answer.headers["x-stream-id"]
        whole = frames_of(answer.body)
        assert [frame.partition(b"\n")[0] for frame in whole] == [
            f"id: {stream_id}.{number}".encode() for number in range(len(whole))
        ]
        assert whole[-1].endswith(DONE)
        assert frames_of(read_on(server, stream_id).body) == whole
        for last_id in range(len(whole) - 1):
            assert frames_of(read_on(server, stream_id, last_id).body) == whole[last_id + 1 :]
        assert read_on(server, stream_id, len(whole) - 1).status == 204
        assert read_on(server, stream_id, len(whole)).json()["code"] == "bad_event_id"


def test_a_stream_that_failed_can_be_resumed_to_its_end() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=["fail_at=1"]) as server:
        answer = ask(server.port, chat(RESUMABLE, stream_options=USAGE))
        _, error, done = frames_of(answer.body)
        stream_id = answer.headers["x-stream-id"]
        assert b'"error"' in error
        assert frames_of(read_on(server, stream_id, 0).body) == [error, done]
        assert (
            frames_of(read_on(server, stream_id, 1).body)
            == [done]
            == [f"id: {stream_id}.2\n".encode() + DONE]
        )
        assert read_on(server, stream_id, 2).status == 204


def test_a_stream_that_was_cut_goes_on_and_is_read_live(hanging: RunningServer) -> None:
    connection, stream_id = begin(hanging, chat(RESUMABLE))
    connection.reset()
    with Connection(hanging.port) as second:
        second.send(request("GET", f"/streams/{stream_id}", "Last-Event-ID: 0"))
        assert second.head().status == 200
        bodies: list[bytes] = []
        reading = threading.Thread(target=lambda: bodies.append(second.rest()))
        reading.start()
        cancel_stream(hanging.port, stream_id)
        reading.join()
    frames = frames_of(bodies[0])
    # The tokens that preceded the cancel, then the end and [DONE].
    ids = [frame.partition(b"\n")[0] for frame in frames]
    assert ids == [f"id: {stream_id}.{1 + index}".encode() for index in range(len(frames))]
    assert 2 <= len(frames) <= 4
    assert frames[-1].endswith(DONE)


@pytest.mark.parametrize(
    ("header", "fields", "param"),
    [
        (RESUMABLE, {"n": 2}, "n"),
        (RESUMABLE, {"stream": False}, "stream"),
        (RESUMABLE, {"prompt": ["a", "b"]}, "prompt"),
        ("X-Penstock-Resumable: yes", {}, None),
    ],
    ids=str,
)
def test_requests_that_cannot_be_resumable_are_refused(
    server: RunningServer, header: str, fields: dict[str, Any], param: str | None
) -> None:
    answer = ask(server.port, complete(header, **fields))
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param


def test_ids_and_heartbeats_do_not_disturb_openai_s_client() -> None:
    """A comment followed by a blank line would make OpenAI's client crash."""
    with (
        serve(
            engine="mock", mock_interval=0.3, heartbeat=0.02, engine_arg=["prefill=0.3", "length=4"]
        ) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert ask(server.port, chat(RESUMABLE)).body.count(b": ping\n") > 6
        for headers in ({"X-Penstock-Resumable": "true"}, {}):
            stream = client.completions.create(
                model="mock", prompt="a", stream=True, extra_headers=headers
            )
            chunks = list(stream)
            assert "".join(c.text for chunk in chunks for c in chunk.choices) == (
                " Water comes down from"
            )


# The engine's death.


def test_sampling_and_logprobs_survive_the_engine_s_death(tmp_path: Path) -> None:
    """Text, log probabilities and usage equal those of an undisturbed stream."""
    fields: dict[str, Any] = {
        # No two tokens of this answer are almost equally likely. Where an engine dies is not exact
        # on a busy machine, and llama.cpp's choice depends on how many tokens it reads at once.
        "prompt": "When I was a child",
        "max_tokens": 50,
        "temperature": 0,
        "logprobs": 1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "logit_bias": {"0": -100, "4": -100, "16": 1},  # the first two ban the end tokens
        "stream_options": USAGE,
    }
    with mortal(tmp_path) as server:
        server.undisturbed(complete(**{**fields, "max_tokens": 1}))  # the prompt is cached now
        expected = chunks_of(server.undisturbed(complete(**fields)).body)
        chunks = chunks_of(server.cut_off(complete(**fields)).body)
    assert content_of(chunks) == content_of(expected)
    assert ends_of(chunks) == ends_of(expected)


def content_of(chunks: list[dict[str, Any]]) -> tuple[str, list[str], dict[str, int]]:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    tokens = [token for c in choices if c["logprobs"] for token in c["logprobs"]["tokens"]]
    return "".join(choice["text"] for choice in choices), tokens, chunks[-1]["usage"]


def test_an_answer_under_a_schema_is_not_continued_and_may_be_asked_for_again(
    tmp_path: Path,
) -> None:
    endless = {"type": "array", "items": {"type": "integer"}, "minItems": 10_000}
    fields = {
        "messages": HELLO,
        "stream": True,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "a",
                "schema": {
                    "type": "object",
                    "required": ["a"],
                    "properties": {"a": endless},
                    "additionalProperties": False,
                },
            },
        },
    }
    with mortal(tmp_path) as server:
        *_, end = chunks_of(server.cut_off(post(json.dumps(fields).encode(), path=CHAT)).body)
        assert end["error"]["code"] == "engine_died"
        assert end["error"]["retry_safe"] is True
        assert eventually(lambda: server.undisturbed(complete(max_tokens=1)).status == 200, 20)


# Every error under /v1 has the same form.

MARK = "zqxj"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (post(b"", path=CHAT), 400, "invalid_json"),
        (post(b'{"prompt":"zqxj"', path=COMPLETIONS), 400, "invalid_json"),
        (post(b'["zqxj"]', path=COMPLETIONS), 400, "not_an_object"),
        (post(b'{"prompt":"zqxj\xff"}', path=COMPLETIONS), 400, "invalid_utf8"),
        (post(b'{"prompt":"zqxj\\ud800"}', path=COMPLETIONS), 400, "invalid_unicode"),
        (post(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", path=CHAT), 400, "too_deep"),
        (post(b'{"prompt":"a","seed":NaN}', path=COMPLETIONS), 400, "invalid_json"),
        (post(b"{}", path=COMPLETIONS), 400, "missing_field"),
        (post(b'{"prompt":""}', path=COMPLETIONS), 400, "empty_prompt"),
        (post(b'{"messages":[]}', path=CHAT), 400, "too_few_items"),
        (complete(model=MARK), 404, "model_not_found"),
        (complete(suffix=MARK), 400, "unsupported_field"),
        (request("POST", CHAT, "Content-Type: text/plain"), 415, "unsupported_media_type"),
        (
            request("POST", CHAT, "Content-Type: application/json", "Content-Length: 999999999"),
            413,
            "body_too_large",
        ),
        (request("GET", CHAT), 405, "method_not_allowed"),
        (request("DELETE", "/v1/models"), 405, "method_not_allowed"),
        (request("GET", "/v1/zqxj"), 404, "unknown_url"),
        (request("GET", "/v1"), 404, "unknown_url"),
        (request("GET", "/v1/models/zqxj%2Fzqxj"), 404, "model_not_found"),
    ],
    ids=lambda value: value[:60].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_a_bad_request_gets_openai_s_error_object_and_nothing_of_it_is_echoed(
    server: RunningServer, sent: bytes, status: int, code: str
) -> None:
    answer = ask(server.port, sent)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "retry_safe"}
    assert error["retry_safe"] is False
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert 10 < len(error["message"]) < 500
    assert MARK.encode() not in answer.body


def test_embeddings_are_refused_in_a_sentence(server: RunningServer) -> None:
    answer = ask(server.port, request("POST", "/v1/embeddings", "Content-Length: 0"))
    assert (answer.status, answer.json()["error"]["code"]) == (501, "not_served")
    assert answer.headers["x-should-retry"] == "false"


def test_while_the_engine_is_away_new_requests_are_told_when_to_come_back(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.touch()
    with serve(engine=WITHHELD, engine_arg=[f"file={model}"]) as server:
        connection, _ = begin(server, chat())
        with connection:
            model.unlink()  # the engine cannot come back before the assertions
            os.kill(server.engine_pid(), signal.SIGKILL)
            assert eventually(lambda: server.readiness() != 200)
            answer = ask(server.port, chat(max_tokens=1))
        assert answer.status == 503
        assert "retry-after" in answer.headers
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "engine_down")
        assert error["retry_safe"] is True


def test_the_api_is_described_for_machines(server: RunningServer) -> None:
    page = ask(server.port, request("GET", "/openapi.json")).json()
    operations = [each for path in page["paths"].values() for each in path.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
    assert all(each["summary"] for each in operations)
    assert set(page["paths"]["/streams/{stream_id}"]) == {"get", "delete"}
    assert set(page["paths"]["/streams/{stream_id}/token"]) == {"post"}
    for path, name in (("/streams/{stream_id}", "stream_id"), ("/v1/models/{model}", "model")):
        parameter = page["paths"][path]["get"]["parameters"][0]
        assert (parameter["name"], parameter["in"]) == (name, "path")
    native = page["components"]["schemas"]["GenerateRequest"]
    turn = page["components"]["schemas"][turn_of(native)]
    assert set(turn["properties"]) == {"role", "content"}
    for path, required in ((CHAT, "messages"), (COMPLETIONS, "prompt")):
        content = page["paths"][path]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        body = page["components"]["schemas"][name]
        assert body["required"] == [required]
        assert {"model", "stream", "n", "seed", "logit_bias"} <= set(body["properties"])
        if path == CHAT:
            turn = page["components"]["schemas"][turn_of(body)]
            assert {"role", "content", "tool_calls"} <= set(turn["properties"])
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(page)))
    assert names <= set(page["components"]["schemas"])


def turn_of(body: dict[str, Any]) -> str:
    """Return the name of the schema of a message."""
    (name,) = re.findall(r"#/components/schemas/(\w+)", json.dumps(body["properties"]["messages"]))
    return str(name)


def test_the_log_line_counts_all_choices() -> None:
    with serve(
        engine="mock", mock_interval=0, log_format="json", engine_arg=["length=12"]
    ) as server:
        for fields in ({"n": 3, "max_tokens": 20}, {"prompt": ["a", "b c"], "n": 2}):
            ask(server.port, complete(**fields))
        ask(server.port, complete(n=2, stream=False, max_tokens=5))
        ask(server.port, complete())

        def lines() -> list[dict[str, Any]]:
            ended = [line for line in server.output if '"request ended"' in line]
            return [json.loads(line) for line in ended]

        assert eventually(lambda: len(lines()) == 4)
        told = [
            [line.get(name) for name in ("choices", "prompt_tokens", "completion_tokens")]
            for line in lines()
        ]
        assert told == [[3, 1, 36], [2 * 2, 3, 48], [2, 1, 10], [None, 1, 12]]
        assert [line["finish_reason"] for line in lines()] == ["stop", "stop", "length", "stop"]
        assert all(line["total_s"] >= line["ttft_s"] > 0 for line in lines())
