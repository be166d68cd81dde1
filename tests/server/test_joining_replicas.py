"""Keys and limits hold over two servers that share a folder of logs."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.keyed import Keys
from tests.support.raw import Connection, Response, ask, cancel_stream, post
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

REPLAYED = "idempotency-replayed"
PATHS: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hi", "max_tokens": 9},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 9, "store": False},
}


@dataclass
class Pair:
    """Two servers over one folder, whose answers hang after 50 tokens, and their keys."""

    first: RunningServer
    second: RunningServer
    keys: Keys

    def post(self, key: str, path: str = "/generate", name: str = "ann", **fields: Any) -> bytes:
        """Build a request of `name` with this Idempotency-Key."""
        body = json.dumps({**PATHS[path], **fields}).encode()
        headers = [self.keys.header(name), *([f"Idempotency-Key: {key}"] if key else [])]
        return post(body, *headers, path=path)

    def num_started(self) -> float:
        """Return how many streams both servers have started."""
        return sum(
            Scrape(server, self.keys.header("admin"))("penstock_streams_started_total")
            for server in (self.first, self.second)
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    keys = Keys(folder / "keys.toml", "ann", "bob", "cid", "admin")
    keys.fields["bob"] = {"max_streams": 1}
    keys.fields["cid"] = {"tokens_per_minute": 1000}
    keys.write()
    flags: dict[str, Any] = {
        "engine": "mock",
        "mock_interval": 0,
        "engine_arg": ["hang_at=50"],
        "keys": keys.path,
        "log": folder / "log",
    }
    with serve(**flags) as first, serve(**flags) as second:
        yield Pair(first, second, keys)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_joined_at_another_server(pair: Pair, path: str, stream: bool) -> None:
    started = pair.num_started()
    data = pair.post(f"twice {stream}", path, stream=stream)
    first, second = ask(pair.first.port, data), ask(pair.second.port, data)
    assert first.status == second.status == 200
    assert second.headers[REPLAYED] == "true"
    assert first.headers["x-stream-id"] == second.headers["x-stream-id"]
    assert first.body == second.body
    assert pair.num_started() == started + 1
    other = pair.post(f"twice {stream}", path, stream=stream, temperature=0.5)
    assert ask(pair.second.port, other).status == 409


def test_requests_at_the_same_moment_start_one_generation(pair: Pair) -> None:
    for number in range(5):
        started = pair.num_started()
        data = pair.post(f"at once {number}", stream=number % 2 == 0)
        ports = [pair.first.port, pair.second.port] * 4
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda port, data=data: ask(port, data), ports))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        assert sum(REPLAYED in answer.headers for answer in answers) == 7
        assert pair.num_started() == started + 1


def test_a_running_answer_is_joined_and_continued_at_another_server(pair: Pair) -> None:
    data = pair.post("running", stream=True, max_tokens=99, resumable=True)
    with Connection(pair.first.port).send(data) as first, Connection(pair.second.port) as second:
        stream_id = first.head().headers["x-stream-id"]
        events = first.events()
        begun = [next(events) for _ in range(50)]
        assert second.send(data).head().headers[REPLAYED] == "true"
        joined = second.events()
        assert [next(joined) for _ in range(50)] == begun
        last = f"Last-Event-ID: {stream_id}.48"
        with Connection(pair.second.port) as third:
            third.send(post(b"{}", pair.keys.header("ann"), last))
            assert third.head().headers["x-stream-id"] == stream_id
            rest = third.events()
            assert next(rest) == begun[49]
            cancel_stream(pair.second.port, stream_id, pair.keys.header("ann"))
            assert list(rest) == list(joined) == list(events)


def test_streams_at_another_server_count(pair: Pair) -> None:
    data = pair.post("", name="bob", stream=True, max_tokens=99)

    def code() -> str:
        with Connection(pair.second.port) as connection:
            head = connection.send(data).head()
            return "" if head.status == 200 else "refused"

    with Connection(pair.first.port).send(data) as running:
        stream_id = running.head().headers["x-stream-id"]
        assert eventually(lambda: code() == "refused")
        cancel_stream(pair.first.port, stream_id, pair.keys.header("bob"))
        running.rest()
    assert eventually(lambda: code() == "")


def test_tokens_that_are_taken_at_another_server_are_gone(pair: Pair) -> None:
    data = pair.post("", name="cid", stream=True, max_tokens=900)
    with Connection(pair.first.port).send(data) as running:
        stream_id = running.head().headers["x-stream-id"]

        def answer() -> Response:
            return ask(pair.second.port, pair.post("", name="cid", stream=False, max_tokens=10))

        assert eventually(lambda: int(answer().headers["x-ratelimit-remaining-tokens"]) < 200)
        cancel_stream(pair.first.port, stream_id, pair.keys.header("cid"))
        running.rest()
