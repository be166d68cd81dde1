"""A resumable stream can be read again, byte for byte (docs/protocol.md)."""

import json
import threading
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.raw import (
    RETRY,
    Connection,
    ask,
    cancel_stream,
    frames_of,
    generate,
    open_stream,
    request,
    resume,
)
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

LINGER_S, RETAIN_S = 0.5, 8.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server whose answers have 30 quick tokens, and which keeps ended streams."""
    with serve(engine="mock", mock_interval=0.005, engine_arg=["length=30"]) as server:
        yield server


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningServer]:
    """A server with one slot and hanging answers of three tokens."""
    with serve(
        engine="mock",
        mock_interval=0,
        linger=LINGER_S,
        retain=RETAIN_S,
        engine_arg=["hang_at=3", "slots=1"],
    ) as server:
        yield server


def resumable(prompt: str = "Hello", **fields: object) -> bytes:
    return generate(prompt, resumable=True, **fields)


def test_every_event_has_its_index_as_its_id(server: RunningServer) -> None:
    answer = ask(server.port, resumable())
    frames = frames_of(answer.body)
    stream_id = answer.headers["x-stream-id"]
    assert len(frames) == 31
    for index, frame in enumerate(frames):
        head, data = frame.rstrip().split(b"\n")
        assert head == f"id: {stream_id}.{index}".encode()
        assert json.loads(data.removeprefix(b"data: "))["index"] == index


def test_a_stream_that_is_not_resumable_has_no_ids(server: RunningServer) -> None:
    assert b"id: " not in ask(server.port, generate()).body


def test_any_cursor_gives_the_rest_byte_for_byte_by_header_and_by_query(
    server: RunningServer,
) -> None:
    connection, stream_id = open_stream(server.port, resumable())
    with connection:
        whole = frames_of(connection.rest())
    assert frames_of(resume(server.port, stream_id).body) == whole
    for last_id in range(30):
        by_header = resume(server.port, stream_id, f"Last-Event-ID: {last_id}")
        by_query = resume(server.port, stream_id, query=f"?after={last_id}")
        named = resume(server.port, stream_id, f"Last-Event-ID: {stream_id}.{last_id}")
        assert by_header.status == by_query.status == named.status == 200
        assert by_header.headers["x-stream-id"] == stream_id
        assert by_header.headers["content-type"].startswith("text/event-stream")
        assert frames_of(by_header.body) == frames_of(by_query.body) == whole[last_id + 1 :]
        assert frames_of(named.body) == whole[last_id + 1 :]


def test_the_header_wins_over_the_query(server: RunningServer) -> None:
    connection, stream_id = open_stream(server.port, resumable())
    with connection:
        whole = frames_of(connection.rest())
    answer = resume(server.port, stream_id, "Last-Event-ID: 20", query="?after=3")
    assert frames_of(answer.body) == whole[21:]


def test_after_the_terminal_event_there_is_no_content(server: RunningServer) -> None:
    connection, stream_id = open_stream(server.port, resumable())
    with connection:
        connection.rest()
    assert resume(server.port, stream_id, "Last-Event-ID: 30").status == 204


@pytest.mark.parametrize(
    "event_id",
    ["-1", "1.0", "abc", "31", "1180591620717411303424", "0x1", "1 2", "", "\u0661", "9" * 10_000],
)
def test_an_invalid_event_id_is_refused(server: RunningServer, event_id: str) -> None:
    connection, stream_id = open_stream(server.port, resumable())
    with connection:
        connection.rest()
    for answer in (
        resume(server.port, stream_id, f"Last-Event-ID: {event_id}"),
        resume(server.port, stream_id, query=f"?after={quote(event_id)}"),
    ):
        assert answer.status == 400
        assert answer.json()["code"] == "bad_event_id"
        assert len(answer.body) < 500


def test_two_last_event_ids_are_refused(server: RunningServer) -> None:
    connection, stream_id = open_stream(server.port, resumable())
    with connection:
        connection.rest()
    for answer in (
        resume(server.port, stream_id, "Last-Event-ID: 1", "Last-Event-ID: 2"),
        resume(server.port, stream_id, query="?after=1&after=2"),
    ):
        assert answer.status == 400
        assert answer.json()["code"] == "bad_event_id"


def test_an_unknown_stream_is_not_found(server: RunningServer) -> None:
    answer = resume(server.port, "A" * 22)
    assert answer.status == 404
    assert answer.json()["code"] == "stream_not_found"


def test_a_stream_that_is_not_resumable_cannot_be_read_again(server: RunningServer) -> None:
    connection, stream_id = open_stream(server.port, generate())
    with connection:
        assert resume(server.port, stream_id).json()["code"] == "not_resumable"
        connection.rest()
    assert resume(server.port, stream_id).status == 409


def test_only_streamed_answers_can_be_resumable(server: RunningServer) -> None:
    answer = ask(server.port, resumable(stream=False))
    assert answer.status == 422
    assert "resumable" in answer.json()["detail"]


def test_an_eventsource_is_told_when_to_come_back_and_not_all_at_once(
    server: RunningServer,
) -> None:
    connection, stream_id = open_stream(server.port, resumable())
    with connection:
        connection.rest()
    times = set()
    for _ in range(10):
        found = RETRY.match(resume(server.port, stream_id).body)
        assert found
        times.add(int(found[1]))
    assert len(times) > 1
    assert all(500 <= each <= 1500 for each in times)


def test_many_readers_read_a_running_stream_and_each_gets_every_byte(
    server: RunningServer,
) -> None:
    connection, stream_id = open_stream(server.port, resumable())
    bodies: list[bytes] = []
    readers = [
        threading.Thread(target=lambda: bodies.append(resume(server.port, stream_id).body))
        for _ in range(20)
    ]
    with connection:
        for reader in readers:
            reader.start()
        whole = frames_of(connection.rest())
    for reader in readers:
        reader.join()
    assert len(bodies) == 20
    assert all(frames_of(body) == whole for body in bodies)


def test_a_stream_goes_on_without_its_reader_and_is_read_on_live(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, resumable())
    with connection:
        next(connection.events())
        connection.reset()
    with Connection(hanging.port) as second:
        second.send(request("GET", f"/streams/{stream_id}", "Last-Event-ID: 0"))
        assert second.head().status == 200
        events = second.events()
        assert [next(events)["index"] for _ in range(2)] == [1, 2]
        assert cancel_stream(hanging.port, stream_id) == "cancelled"
        (end,) = events
    assert (end["index"], end["finish_reason"]) == (3, "cancelled")


def test_every_reader_gets_the_terminal_event_of_a_cancel(hanging: RunningServer) -> None:
    first, stream_id = open_stream(hanging.port, resumable())
    with first, Connection(hanging.port) as second:
        second.send(request("GET", f"/streams/{stream_id}"))
        assert second.head().status == 200
        cancel_stream(hanging.port, stream_id)
        ends = [list(connection.events())[-1] for connection in (first, second)]
    assert ends[0] == ends[1]
    assert ends[0]["finish_reason"] == "cancelled"


def test_a_stream_that_nobody_reads_is_cancelled_after_lingering_and_then_forgotten(
    hanging: RunningServer,
) -> None:
    connection, stream_id = open_stream(hanging.port, resumable())
    connection.close()
    # The only slot is free as soon as the stream is cancelled.
    waiting, _ = open_stream(hanging.port, generate(max_tokens=1))
    with waiting:
        assert list(waiting.events())[-1]["finish_reason"] == "length"
    *_, end = frames_of(resume(hanging.port, stream_id).body)
    assert b'"finish_reason":"cancelled"' in end
    assert eventually(lambda: resume(hanging.port, stream_id).status == 410)
    assert resume(hanging.port, stream_id).json()["code"] == "history_lost"


def test_a_stream_that_is_read_does_not_end_by_lingering(hanging: RunningServer) -> None:
    first, stream_id = open_stream(hanging.port, resumable())
    with Connection(hanging.port) as second:
        second.send(request("GET", f"/streams/{stream_id}"))
        assert second.head().status == 200
        events = second.events()
        assert [next(events)["index"] for _ in range(3)] == [0, 1, 2]
        first.close()
        time.sleep(2 * LINGER_S)
        cancel_stream(hanging.port, stream_id)
        (end,) = events
    assert end["finish_reason"] == "cancelled"
