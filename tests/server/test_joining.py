"""A request with the Idempotency-Key of an earlier one gets its answer (docs/protocol.md)."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.keyed import Keys
from tests.support.openai_wire import RESUMABLE
from tests.support.raw import (
    Connection,
    Response,
    ask,
    cancel_stream,
    frames_of,
    post,
    resume,
)
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

USER = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hi", "max_tokens": 9},
    "/v1/chat/completions": {"messages": USER, "max_tokens": 9},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 9},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 9},
    "/v1/messages": {"model": "mock", "messages": USER, "max_tokens": 9},
    "/completion": {"prompt": "Hi", "n_predict": 9},
}
routes = pytest.mark.parametrize("path", BODIES)
REPLAYED = "idempotency-replayed"
NOTHING_LEFT = (200, b"")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server whose answers are quick and are kept."""
    with serve(engine="mock", mock_interval=0.002, engine_arg=["length=300"]) as server:
        yield server


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningServer]:
    """A server whose answers hang after three tokens."""
    with serve(engine="mock", mock_interval=0, engine_arg=["hang_at=3"]) as server:
        yield server


def keyed(key: str, path: str = "/generate", *headers: str, **fields: Any) -> bytes:
    body = json.dumps({**BODIES[path], **fields}).encode()
    return post(body, f"Idempotency-Key: {key}", *headers, path=path)


def num_started(server: RunningServer) -> float:
    return Scrape(server)("penstock_streams_started_total")


# What a key's second request gets.


@routes
@pytest.mark.parametrize("stream", [True, False])
def test_a_second_request_gets_the_same_answer_and_starts_nothing(
    server: RunningServer, path: str, stream: bool
) -> None:
    started = num_started(server)
    data = keyed(f"twice {stream}", path, stream=stream)
    first, second = ask(server.port, data), ask(server.port, data)
    assert first.status == second.status == 200
    assert REPLAYED not in first.headers
    assert second.headers[REPLAYED] == "true"
    assert first.headers["x-stream-id"] == second.headers["x-stream-id"]
    assert first.body == second.body
    assert len(first.body) > 100
    assert num_started(server) == started + 1


@routes
def test_a_key_changes_nothing_in_an_answer_s_frames(server: RunningServer, path: str) -> None:
    body = ask(server.port, keyed("form", path, stream=True)).body
    assert body.startswith((b"data: ", b"event: "))
    assert b"\nid: " not in body


@routes
def test_an_answer_with_a_key_and_ids_is_joined_with_ids(server: RunningServer, path: str) -> None:
    how = {"resumable": True} if path == "/generate" else {}
    data = keyed("ids", path, RESUMABLE, stream=True, **how)
    first, second = ask(server.port, data), ask(server.port, data)
    assert f"id: {first.headers['x-stream-id']}.0\n".encode() in second.body
    assert first.body == second.body


@routes
@pytest.mark.parametrize("stream", [True, False])
def test_requests_at_the_same_moment_start_one_generation(
    server: RunningServer, path: str, stream: bool
) -> None:
    started = num_started(server)
    data = keyed(f"at once {stream}", path, stream=stream)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: ask(server.port, data), range(8)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert sum(REPLAYED in answer.headers for answer in answers) == 7
    assert num_started(server) == started + 1


def test_a_running_answer_is_joined_from_its_beginning(hanging: RunningServer) -> None:
    data = keyed("running", stream=True, max_tokens=30)
    with Connection(hanging.port).send(data) as first, Connection(hanging.port) as second:
        stream_id = first.head().headers["x-stream-id"]
        events = first.events()
        begun = [next(events) for _ in range(3)]
        head = second.send(data).head()
        assert head.headers[REPLAYED] == "true"
        assert head.headers["x-stream-id"] == stream_id
        joined = second.events()
        assert [next(joined) for _ in range(3)] == begun
        assert cancel_stream(hanging.port, stream_id) == "cancelled"
        assert list(events) == list(joined)


def test_a_whole_answer_outlives_its_connection_and_is_joined(server: RunningServer) -> None:
    data = keyed("outlives", stream=False, max_tokens=300)
    started = num_started(server)
    with Connection(server.port).send(data) as first:
        assert eventually(lambda: num_started(server) == started + 1)
        first.reset()
    answer = ask(server.port, data)
    assert answer.headers[REPLAYED] == "true"
    assert answer.json()["usage"]["completion_tokens"] == 300
    assert num_started(server) == started + 1


def test_a_joined_stream_is_resumable_by_its_id(server: RunningServer) -> None:
    answer = ask(server.port, keyed("by id", stream=True))
    rest = resume(server.port, answer.headers["x-stream-id"], "Last-Event-ID: 5")
    assert len(frames_of(rest.body)) == 4


def test_the_order_of_the_names_and_the_white_space_do_not_count(server: RunningServer) -> None:
    bodies = b'{"prompt":"x","max_tokens":3}', b'{\n "max_tokens": 3, "prompt": "\\u0078"}'
    first, second = (ask(server.port, post(each, "Idempotency-Key: order")) for each in bodies)
    assert REPLAYED in second.headers
    assert first.body == second.body


# Whose a key is.


@routes
def test_another_body_with_the_key_is_refused(server: RunningServer, path: str) -> None:
    ask(server.port, keyed("taken", path))
    answer = ask(server.port, keyed("taken", path, temperature=0.5))
    assert answer.status == 409
    assert code_of(answer) == "idempotency_key_reused"
    assert answer.headers["x-should-retry"] == "false"
    assert b"taken" not in answer.body


def test_a_key_belongs_to_its_route(server: RunningServer) -> None:
    first = ask(server.port, keyed("route", "/generate"))
    second = ask(server.port, keyed("route", "/v1/completions"))
    assert REPLAYED not in second.headers
    assert first.headers["x-stream-id"] != second.headers["x-stream-id"]


def test_nothing_joins_by_its_body_alone(server: RunningServer) -> None:
    ids = {ask(server.port, keyed(key)).headers["x-stream-id"] for key in ("a", "b", "c")}
    assert len(ids) == 3


def test_a_key_belongs_to_its_owner(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.toml", "ann", "bob")
    with serve(engine="mock", mock_interval=0, keys=keys.path) as server:
        data = {name: keyed("mine", "/generate", keys.header(name)) for name in keys.keys}
        first = ask(server.port, data["ann"])
        other = ask(server.port, data["bob"])
        again = ask(server.port, data["ann"])
    assert REPLAYED not in other.headers
    assert first.headers["x-stream-id"] != other.headers["x-stream-id"]
    assert first.headers["x-stream-id"] == again.headers["x-stream-id"]


# What does not occupy a key, and when it is free again.


@pytest.mark.parametrize(
    "key", ["", "a" * 256, "caf\u00e9", "a\tb"], ids=["empty", "long", "not ascii", "control"]
)
def test_a_key_that_is_none_is_refused(server: RunningServer, key: str) -> None:
    answer = ask(server.port, keyed(key))
    assert (answer.status, code_of(answer)) == (422, "invalid_value")
    assert "Idempotency-Key" in answer.json()["detail"]


def test_the_longest_key_is_taken_and_two_keys_are_not(server: RunningServer) -> None:
    assert ask(server.port, keyed("~" * 255)).status == 200
    assert ask(server.port, keyed("a", "/generate", "Idempotency-Key: a")).status == 422


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_several_choices_are_refused_in_a_sentence(server: RunningServer, path: str) -> None:
    answer = ask(server.port, keyed("choices", path, n=2))
    assert answer.status == 400
    assert "several choices cannot have an Idempotency-Key" in answer.json()["error"]["message"]
    assert ask(server.port, keyed("choices", path)).status == 200


def test_a_refused_request_does_not_occupy_its_key(server: RunningServer) -> None:
    assert ask(server.port, keyed("refused", temperature=99)).status == 422
    assert ask(server.port, keyed("refused", prompt="word " * 9000)).status == 422  # the engine's
    answer = ask(server.port, keyed("refused"))
    assert answer.status == 200
    assert REPLAYED not in answer.headers


def test_a_request_without_room_does_not_occupy_its_key_and_joining_needs_no_room(
    tmp_path: Path,
) -> None:
    keys = Keys(tmp_path / "keys.toml", "ann")
    keys.fields["ann"] = {"max_streams": 1}
    keys.write()
    with serve(engine="mock", mock_interval=0, keys=keys.path, engine_arg=["hang_at=3"]) as server:
        running, other = (
            keyed(key, "/generate", keys.header("ann"), stream=True, max_tokens=30)
            for key in ("running", "other")
        )
        with Connection(server.port).send(running) as first, Connection(server.port) as second:
            stream_id = first.head().headers["x-stream-id"]
            assert code_of(ask(server.port, other)) == "too_many_streams"
            assert second.send(running).head().headers[REPLAYED] == "true"
            cancel_stream(server.port, stream_id, keys.header("ann"))
            first.rest()
        with Connection(server.port).send(other) as third:
            head = third.head()
            assert (head.status, REPLAYED in head.headers) == (200, False)


def test_a_failed_answer_that_is_safe_to_retry_frees_its_key() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=["fail_at=2"]) as server:
        answers = [ask(server.port, keyed("fails", stream=True)) for _ in range(2)]
    assert all(b'"retry_safe":true' in answer.body for answer in answers)
    assert not any(REPLAYED in answer.headers for answer in answers)


def test_a_cancelled_answer_frees_its_key(hanging: RunningServer) -> None:
    data = keyed("cancelled", stream=True, max_tokens=30)
    ids = []
    for _ in range(2):
        with Connection(hanging.port).send(data) as connection:
            ids.append(connection.head().headers["x-stream-id"])
            assert cancel_stream(hanging.port, ids[-1]) == "cancelled"
            connection.rest()
    assert ids[0] != ids[1]


def test_a_key_is_free_when_its_answer_is_no_longer_kept() -> None:
    with serve(engine="mock", mock_interval=0, retain=0.2) as server:
        first = ask(server.port, keyed("kept"))

        def is_free() -> bool:
            return ask(server.port, keyed("kept", temperature=0.5)).status == 200

        assert eventually(is_free)
        again = ask(server.port, keyed("kept", temperature=0.5))
    assert again.headers["x-stream-id"] != first.headers["x-stream-id"]


# A POST with Last-Event-ID.


@routes
def test_a_post_with_the_last_id_continues_its_stream_and_starts_nothing(
    server: RunningServer, path: str
) -> None:
    how = {"resumable": True} if path == "/generate" else {}
    body = json.dumps({**BODIES[path], "stream": True, **how}).encode()
    first = ask(server.port, post(body, RESUMABLE, path=path))
    frames, stream_id = frames_of(first.body), first.headers["x-stream-id"]
    started = num_started(server)
    for number in range(len(frames)):
        last = f"Last-Event-ID: {stream_id}.{number}"
        answer = ask(server.port, post(body, RESUMABLE, last, path=path))
        assert frames_of(answer.body) == frames[number + 1 :]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-stream-id"] == stream_id
    assert (answer.status, answer.body) == NOTHING_LEFT
    assert num_started(server) == started


def test_a_post_with_the_last_id_continues_a_running_stream(hanging: RunningServer) -> None:
    body = json.dumps({"prompt": "x", "resumable": True}).encode()
    with Connection(hanging.port).send(post(body)) as first:
        stream_id = first.head().headers["x-stream-id"]
        events = first.events()
        begun = [next(events) for _ in range(3)]
        first.reset()
    answers: list[Response] = []
    last = f"Last-Event-ID: {stream_id}.1"
    with Connection(hanging.port).send(post(body, last)) as second:
        second.head()
        events = second.events()
        assert next(events) == begun[2]
        waiting = threading.Thread(target=lambda: answers.append(resume(hanging.port, stream_id)))
        waiting.start()
        cancel_stream(hanging.port, stream_id)
        assert next(events)["finish_reason"] == "cancelled"
        waiting.join()
    assert answers[0].status == 200


@routes
@pytest.mark.parametrize(
    "event_id", ["3", "0", "a", "", "a.", ".3", "a.b", "a.-1", "a b.3", "a.1.2", "a." + "9" * 16]
)
def test_a_post_with_a_bare_or_malformed_id_is_refused(
    server: RunningServer, path: str, event_id: str
) -> None:
    started = num_started(server)
    body = json.dumps(BODIES[path]).encode()
    answer = ask(server.port, post(body, f"Last-Event-ID: {event_id}", path=path))
    assert (answer.status, code_of(answer)) == (400, "bad_event_id")
    if event_id.isdigit():
        assert b"GET /streams/{id}" in answer.body
    assert num_started(server) == started


def test_a_post_after_a_stream_s_end_or_of_another_s_stream_starts_nothing(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.toml", "ann", "bob")
    with serve(engine="mock", mock_interval=0, keys=keys.path, retain=600) as server:
        stream_id = ask(server.port, keys.generate("ann", resumable=True)).headers["x-stream-id"]

        def post_on(name: str, event_id: str) -> Response:
            headers = keys.header(name), f"Last-Event-ID: {event_id}"
            return ask(server.port, post(b'{"prompt": "x"}', *headers))

        assert post_on("ann", f"{stream_id}.3").status == 200
        assert code_of(post_on("bob", f"{stream_id}.3")) == "stream_not_found"
        assert code_of(post_on("ann", f"{stream_id}.99999")) == "bad_event_id"
        unknown = post_on("ann", "A" * 22 + ".3")
        assert (unknown.status, code_of(unknown)) == (404, "stream_not_found")
        plain = ask(server.port, keys.generate("ann")).headers["x-stream-id"]
        assert code_of(post_on("ann", f"{plain}.3")) == "not_resumable"


def test_a_post_for_events_that_are_no_longer_kept_is_told_so() -> None:
    with serve(engine="mock", mock_interval=0, retain_bytes=0) as server:
        data = b'{"prompt": "x", "resumable": true}'
        stream_id = ask(server.port, post(data)).headers["x-stream-id"]
        answer = ask(server.port, post(data, f"Last-Event-ID: {stream_id}.3"))
    assert (answer.status, code_of(answer)) == (410, "history_lost")


def test_an_id_of_another_stream_is_refused(server: RunningServer) -> None:
    stream_id = ask(server.port, keyed("of another")).headers["x-stream-id"]
    for answer in (
        resume(server.port, stream_id, f"Last-Event-ID: {'A' * 22}.1"),
        resume(server.port, stream_id, query=f"?after={'A' * 22}.1"),
    ):
        assert (answer.status, code_of(answer)) == (400, "bad_event_id")


def code_of(answer: Response) -> str:
    body = answer.json()
    error = body.get("error", body)
    return str(error.get("code", error.get("type")))
