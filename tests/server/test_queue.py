"""The queue as clients see it: their position at once and regularly, or a refusal at once."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.raw import Connection, ask, cancel_stream, generate, open_stream, post
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.waiting import PATIENCE_S

RUNNING, WAITING = "penstock_streams_running", "penstock_streams_waiting"
STOPPING = "penstock_engine_stopping"
FLAGS: dict[str, Any] = {
    "slots": 1,
    "max_queue": 1,
    "engine": "mock",
    "mock_interval": 0,
    "heartbeat": 0.3,
    "engine_arg": ["hang_at=3", "context_length=50"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server with one slot, a queue of one, and answers that hang after three words."""
    with serve(**FLAGS) as server:
        yield server


@pytest.fixture
def holder(server: RunningServer) -> Iterator[str]:
    """Open a stream that takes the slot, and yield its id."""
    # Streams of the test before may not have let go yet.
    scrape_until(server, lambda scrape: scrape(RUNNING) + scrape(WAITING) + scrape(STOPPING) == 0)
    connection, stream_id = open_stream(server.port, generate())
    with connection:
        assert next(connection.events())["index"] == 0
        yield stream_id
        cancel_stream(server.port, stream_id)


def test_a_queued_client_gets_a_head_at_once_and_then_its_position_in_comments(
    server: RunningServer, holder: str
) -> None:
    connection, stream_id = open_stream(server.port, generate())
    with connection:
        while not (chunk := connection.chunk()).startswith(b": queue"):
            assert chunk == b""
        for each in (chunk, connection.chunk(), connection.chunk()):  # heartbeats repeat it
            assert re.fullmatch(rb": queue position=1( eta=\d+\.\d)?\n", each)
        cancel_stream(server.port, holder)
        assert next(connection.events())["token"] == " Water"
        cancel_stream(server.port, stream_id)


def test_queue_positions_come_as_events_on_request(server: RunningServer, holder: str) -> None:
    connection, _ = open_stream(server.port, generate(queue_events=True))
    with connection:
        chunk = connection.chunk()
    name, data, *rest = chunk.split(b"\n")
    assert name == b"event: queue"
    assert rest == [b"", b""]
    assert json.loads(data.removeprefix(b"data: "))["position"] == 1


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_full_queue_refuses_quickly_and_says_when_to_retry(
    server: RunningServer, holder: str, path: str
) -> None:
    connection, _ = open_stream(server.port, generate())
    with connection:
        began = time.monotonic()
        answer = ask(server.port, post(b'{"prompt":"a"}', path=path))
        assert time.monotonic() - began < PATIENCE_S  # in the queue it would wait for ever
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        problem = answer.json()
        if path == "/generate":
            assert problem["code"] == "queue_full"
        else:
            assert problem["error"]["code"] == "queue_full"


@pytest.mark.parametrize("num_bytes", [10, 100_000, 250_000])
def test_a_refusal_reaches_a_client_that_is_still_sending_and_its_connection_lives_on(
    server: RunningServer, holder: str, num_bytes: int
) -> None:
    connection, _ = open_stream(server.port, generate())
    with connection, Connection(server.port) as refused:
        for _ in range(3):
            assert refused.send(generate("x" * num_bytes)).response().status == 429


def test_a_prompt_that_is_too_long_is_a_422_unless_it_had_to_wait(server: RunningServer) -> None:
    long = "a " * 60
    # Streams of other tests may have the slot until the engine has let go of them.
    scrape_until(server, lambda scrape: scrape(RUNNING) + scrape(WAITING) + scrape(STOPPING) == 0)
    assert ask(server.port, generate(long)).status == 422
    first, first_id = open_stream(server.port, generate())
    with first:
        streamed, _ = open_stream(server.port, generate(long))
        with streamed:
            cancel_stream(server.port, first_id)
            (end,) = streamed.events()
    assert end["finish_reason"] == "error"
    assert end["error"]["code"] == "prompt_too_long"
    assert end["error"]["retry_safe"] is False
    second, second_id = open_stream(server.port, generate())
    with second, Connection(server.port) as whole:
        whole.send(generate(long, stream=False))
        assert next(second.events())["index"] == 0
        cancel_stream(server.port, second_id)
        assert whole.response().status == 422


@pytest.mark.parametrize("api", ["native", "v1"])
def test_a_deadline_ends_an_answer_where_it_is(server: RunningServer, api: str) -> None:
    if api == "native":
        answer = ask(server.port, generate(stream=False, timeout=5))
        assert answer.json()["finish_reason"] == "deadline"
        assert answer.json()["text"] == " Water comes down"
    else:
        sent = post(b'{"prompt":"a"}', "X-Penstock-Timeout: 5", path="/v1/completions")
        (choice,) = ask(server.port, sent).json()["choices"]
        assert choice["text"] == " Water comes down"
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")


def test_a_deadline_ends_a_queued_request() -> None:
    """No stream of this server has ended, so it cannot refuse a deadline that it would not meet."""
    with serve(**FLAGS) as server:
        holder, _ = open_stream(server.port, generate())
        with holder:
            connection, _ = open_stream(server.port, generate(timeout=0.3))
            with connection:
                (end,) = connection.events()
            assert end["finish_reason"] == "deadline"
            assert end["usage"]["total_tokens"] == 0
            answer = ask(server.port, generate(stream=False, timeout=0.3))
            assert answer.status == 504
            assert answer.json()["code"] == "deadline_passed"


@pytest.mark.parametrize("value", ["0", "-1", "x", "1e9", "604801", "1\r\nX-Penstock-Timeout: 1"])
def test_an_invalid_deadline_is_refused(server: RunningServer, value: str) -> None:
    sent = post(b'{"prompt":"a"}', f"X-Penstock-Timeout: {value}", path="/v1/completions")
    assert ask(server.port, sent).status == 400
