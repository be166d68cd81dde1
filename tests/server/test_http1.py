"""HTTP/1.1 below the routes: old clients, unusual clients, and clients that pipeline requests."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from penstock.web.http1.server import HEAD_TIMEOUT_S
from tests.support.raw import Connection, ask, generate, open_stream, post, request
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

HEALTH = request("GET", "/health")
ENDLESS = 1000  # so many tokens that the stream ends only when its client leaves


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(engine="mock", mock_interval=0.02, engine_arg=["length=1000"]) as server:
        yield server


def num_cancelled(server: RunningServer) -> int:
    """Return how many requests ended because their clients had left, by the log."""
    return sum("finish_reason=cancelled" in line for line in list(server.output))


def test_requests_sent_ahead_are_answered_in_order(server: RunningServer) -> None:
    with Connection(server.port) as connection:
        connection.send(HEALTH + generate(max_tokens=3) + generate(stream=False, max_tokens=1))
        connection.send(request("GET", "/nope") + HEALTH)
        assert connection.response().json() == {"status": "healthy"}
        assert connection.head().status == 200
        assert [event["index"] for event in connection.events()] == [0, 1, 2, 3]
        assert connection.response().json()["text"] == " Water"
        assert connection.response().status == 404
        assert connection.response().json() == {"status": "healthy"}


def test_a_client_that_leaves_after_it_sent_ahead_is_noticed(server: RunningServer) -> None:
    with Connection(server.port) as connection:
        connection.send(generate(max_tokens=ENDLESS) + HEALTH)
        stream_id = connection.head().headers["x-stream-id"]
        connection.chunk()

    def is_told() -> bool:
        lines = [line for line in list(server.output) if f"stream_id={stream_id} " in line]
        return any("finish_reason=cancelled" in line for line in lines)

    assert eventually(is_told)


def test_a_client_that_leaves_after_it_sent_very_much_ahead_is_noticed(
    server: RunningServer,
) -> None:
    """The server does not read all of it, so it does not read the client's FIN either."""
    before = num_cancelled(server)
    for stream in (True, False):
        with Connection(server.port) as connection:
            connection.send(generate(max_tokens=ENDLESS, stream=stream) + HEALTH * 5000)
            if stream:
                connection.head()
    assert eventually(lambda: num_cancelled(server) == before + 2)


def test_expect_100_continue_is_answered_before_the_body(server: RunningServer) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1, "stream": False}).encode()
    with Connection(server.port) as connection:
        connection.send(post(body, "Expect: 100-continue").removesuffix(body))
        assert connection.head().status == 100
        assert connection.send(body).response().status == 200


def test_a_client_of_http_1_0_gets_a_stream_without_chunks(server: RunningServer) -> None:
    with Connection(server.port) as connection:
        connection.send(generate(max_tokens=3).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert "transfer-encoding" not in connection.head().headers
        *events, rest = connection.until_closed().split(b"\n\n")
    assert [json.loads(event.removeprefix(b"data: "))["index"] for event in events] == [0, 1, 2, 3]
    assert rest == b""


def test_an_answer_to_head_has_no_body(server: RunningServer) -> None:
    with Connection(server.port) as connection:
        length = int(connection.send(request("HEAD", "/health")).head().headers["content-length"])
        answer = connection.send(HEALTH).response()
        assert (answer.status, len(answer.body)) == (200, length)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_to_upgrade_is_answered_in_http_1_1(server: RunningServer, method: str) -> None:
    wish = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    body = json.dumps({"prompt": "a", "max_tokens": 1, "stream": False}).encode()
    sent = request("GET", "/health", *wish) if method == "GET" else post(body, *wish)
    assert ask(server.port, sent).status == 200


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_has_finished_sending_gets_its_answer(
    server: RunningServer, stream: bool
) -> None:
    with Connection(server.port) as connection:
        connection.send(generate(max_tokens=20, stream=stream)).half_close()  # 0.4 s of tokens
        head = connection.head()
        assert head.status == 200
        if stream:
            *_, end = connection.events()
            assert end["index"] == 20
        else:
            body = connection._exactly(int(head.headers["content-length"]))
            assert json.loads(body)["usage"]["completion_tokens"] == 20
        assert connection.is_closed()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_finishes_sending_and_then_leaves_is_noticed(
    server: RunningServer, stream: bool
) -> None:
    before = num_cancelled(server)
    with Connection(server.port) as connection:
        connection.send(generate("gone", max_tokens=ENDLESS, stream=stream)).half_close()
        if stream:
            connection.head()
            connection.chunk()

    def is_told() -> bool:
        return num_cancelled(server) == before + 1

    assert eventually(is_told)


def test_health_is_told_to_a_client_that_has_finished_sending(server: RunningServer) -> None:
    with Connection(server.port) as connection:
        connection.send(HEALTH).half_close()
        assert connection.until_closed().endswith(b'{"status":"healthy"}')


def test_idle_connections_do_not_hold_up_the_server_s_end() -> None:
    with serve(engine="mock") as server, Connection(server.port) as used:
        assert used.send(HEALTH).response().status == 200
        with Connection(server.port) as silent:
            server.process.terminate()
            assert (
                server.process.wait(HEAD_TIMEOUT_S - 1) == 0
            )  # sooner than the timeout for a request's head
            assert used.is_closed()
            assert silent.is_closed()


def test_connections_beyond_the_limit_wait_for_room() -> None:
    """One address may have seven eighths of the places: three of its connections wait here."""
    with (
        serve(engine="mock", mock_interval=60, max_connections=6) as server,
        contextlib.ExitStack() as stack,
    ):
        busy = [open_stream(server.port, generate())[0] for _ in range(5)]
        waiting = [stack.enter_context(Connection(server.port)).send(HEALTH) for _ in range(3)]
        for connection in waiting:
            connection.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.head()
        waiting[1].close()  # one that waits makes no room
        with pytest.raises(TimeoutError):
            waiting[0].head()
        for connection in busy:
            connection.close()
        for connection in (waiting[0], waiting[2]):
            connection.socket.settimeout(20)
            assert connection.response().status == 200
        assert ask(server.port, HEALTH).status == 200
