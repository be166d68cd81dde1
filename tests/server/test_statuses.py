"""What a client that asks is told about its stream, over sockets, from engines that really die."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.raw import (
    Connection,
    ask,
    cancel_stream,
    generate,
    open_stream,
    post,
    request,
    resume,
)
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve

ASKS = "X-Penstock-Status: true"
LIMIT_S = 10.0  # a tenth of it is a look: a busy machine holds no engine up for so long
LENGTH = 100
PATHS: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hi"},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 500},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 500},
    "/v1/responses": {"input": "Hi", "store": False},
}


@contextlib.contextmanager
def numbered(**flags: Any) -> Iterator[RunningServer]:
    """Serve "Hi:0 Hi:1 ..." at 40 tokens per second, with one slot."""
    arguments = ["numbered=true", f"length={LENGTH}"]
    with serve(
        engine="mock", mock_interval=0.025, slots=1, engine_arg=arguments, **flags
    ) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server that takes no pause of its engine for a silence."""
    with numbered() as server:
        yield server


@pytest.fixture(scope="module")
def watchful() -> Iterator[RunningServer]:
    """A server that tells a silence of its engine, and ends it."""
    with numbered(engine_timeout=LIMIT_S) as server:
        yield server


class Watched:
    """A stream as its client receives it: statuses and events, in order."""

    def __init__(self, connection: Connection, stream_id: str) -> None:
        self.id = stream_id
        self.lines: list[str] = []
        self._connection = connection
        self._chunks = connection.chunks()
        self._rest = b""

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def until(self, wanted: str) -> "Watched":
        """Read until a line contains `wanted`."""
        while not any(wanted in line for line in self.lines):
            self._more()
        return self

    def to_end(self) -> "Watched":
        for chunk in self._chunks:
            self._add(chunk)
        return self

    def _more(self) -> None:
        self._add(next(self._chunks))

    def _add(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self.lines += [line.decode() for line in lines]

    @property
    def statuses(self) -> list[dict[str, Any]]:
        found = [line for line in self.lines if line.startswith(": status ")]
        return [json.loads(line.removeprefix(": status ")) for line in found]

    @property
    def states(self) -> list[str]:
        """The states from the first token on, in order and without repetitions."""
        states = [status["state"] for status in self.statuses]
        states = states[states.index("generating") :]
        return [each for index, each in enumerate(states) if states[index - 1 : index] != [each]]

    @property
    def answer(self) -> list[str]:
        """Everything but comments."""
        return [line for line in self.lines if not line.startswith(":")]


def watched(
    server: RunningServer, path: str = "/generate", *headers: str, **fields: Any
) -> Watched:
    """Open a stream."""
    body = json.dumps({**PATHS[path], "stream": True, **fields}).encode()
    return Watched(*open_stream(server.port, post(body, *headers, path=path)))


def joined(server: RunningServer, stream_id: str, query: str = "", *headers: str) -> Watched:
    """Read a running stream as another client."""
    data = request("GET", f"/streams/{stream_id}{query}", *headers)
    return Watched(*open_stream(server.port, data))


def words(lines: list[str]) -> list[str]:
    """Return the mock's words in order."""
    return [f"Hi:{number} " for number in range(LENGTH) if f"Hi:{number} " in "".join(lines)]


@pytest.mark.parametrize("path", PATHS)
def test_every_api_tells_in_comments_that_the_engine_died_and_goes_on(
    server: RunningServer, path: str
) -> None:
    with watched(server, path, ASKS) as stream:
        stream.until("Hi:9 ")
        os.kill(server.engine_pid(), signal.SIGKILL)
        stream.to_end()
    assert stream.states == ["generating", "restarting", "prefill", "generating"]
    restarting = next(each for each in stream.statuses if each["state"] == "restarting")
    assert 10 <= restarting["tokens"] < LENGTH
    assert stream.statuses[-1] == {"state": "generating", "tokens": restarting["tokens"]}
    # The status stands exactly between the tokens that were kept and those that came afterwards.
    place = stream.lines.index(f": status {json.dumps(restarting, separators=(',', ':'))}")
    assert len(words(stream.lines[:place])) == restarting["tokens"]
    assert len(words(stream.answer)) == LENGTH


def test_who_does_not_ask_gets_no_status_and_neither_does_the_log(server: RunningServer) -> None:
    with watched(server, resumable=True) as quiet:
        quiet.until("Hi:9 ")
        os.kill(server.engine_pid(), signal.SIGKILL)
        quiet.to_end()
    assert not [line for line in quiet.lines if "status" in line]
    later = resume(server.port, quiet.id, ASKS).body.decode().split("\n")
    assert later[0].startswith("retry: ")
    assert later[1:-1] == quiet.lines
    assert len(words(quiet.lines)) == LENGTH


def test_a_status_event_has_no_id_and_replaces_the_events_of_the_queue(
    server: RunningServer,
) -> None:
    with watched(server) as first:
        first.until("Hi:0 ")
        with watched(server, resumable=True, status_events=True, queue_events=True) as waiting:
            waiting.until("event: status")
            cancel_stream(server.port, first.id)
            waiting.to_end()
    frames = "\n".join(waiting.lines).split("\n\n")
    told = [frame for frame in frames if frame.startswith("event: status\n")]
    statuses = [json.loads(frame.partition("data: ")[2]) for frame in told]
    assert statuses[0]["state"] == "queued"
    assert statuses[0]["position"] == 1
    assert {"prefill", "generating"} <= {each["state"] for each in statuses}
    assert not [frame for frame in told if "id:" in frame]
    assert not [frame for frame in frames if "event: queue" in frame]
    ids = [frame.partition("\n")[0].rpartition(".")[2] for frame in frames if "id: " in frame]
    assert ids == [str(index) for index in range(LENGTH + 1)]


def test_a_place_in_the_queue_is_a_status_in_comments_too(server: RunningServer) -> None:
    with watched(server) as first, watched(server, "/v1/chat/completions", ASKS) as waiting:
        waiting.until('"queued"')
        assert waiting.statuses[0]["position"] == 1
        assert ": queue" not in "\n".join(waiting.lines)
        cancel_stream(server.port, first.id)
        waiting.until("generating")
        cancel_stream(server.port, waiting.id)


def test_a_frozen_engine_is_told_again_and_again_until_it_is_restarted(
    watchful: RunningServer,
) -> None:
    with watched(watchful, "/generate", ASKS, resumable=True) as stream:
        stream.until("Hi:9 ")
        os.kill(watchful.engine_pid(), signal.SIGSTOP)
        stream.until('"stalled"')
        # A reader that comes meanwhile is told at once. (An EventSource asks so.)
        with joined(watchful, stream.id, "?status_events=true") as late:
            late.until("event: status").until("Hi:9 ").until("restarting")
        assert any(line.startswith('data: {"state":"stalled"') for line in late.lines)
        stream.to_end()
    silences = [each for each in stream.statuses if each["state"] == "stalled"]
    seconds = [each["seconds"] for each in silences]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] <= seconds[-1] < 3 * LIMIT_S
    assert {each["limit"] for each in silences} == {LIMIT_S}
    assert stream.states[1:] == ["stalled", "restarting", "prefill", "generating"]
    assert len(words(stream.answer)) == LENGTH


def test_a_client_that_comes_to_a_frozen_engine_is_told_before_it_is_restarted(
    watchful: RunningServer,
) -> None:
    os.kill(watchful.engine_pid(), signal.SIGSTOP)
    with watched(watchful, "/generate", ASKS) as stream:
        stream.to_end()
    told = [status["state"] for status in stream.statuses]
    assert list(dict.fromkeys(told)) == ["stalled", "restarting", "prefill", "generating"]
    assert len(words(stream.answer)) == LENGTH


def test_an_engine_that_goes_on_is_told_as_well(watchful: RunningServer) -> None:
    with watched(watchful, "/generate", ASKS) as stream:
        stream.until("Hi:9 ")
        os.kill(watchful.engine_pid(), signal.SIGSTOP)
        stream.until('"stalled"')
        os.kill(watchful.engine_pid(), signal.SIGCONT)
        stream.to_end()
    assert stream.states == ["generating", "stalled", "generating"]
    assert len(words(stream.answer)) == LENGTH


def test_a_client_that_asks_in_a_wrong_way_is_told_so(server: RunningServer) -> None:
    assert ask(server.port, generate(stream=False, status_events=True)).status == 422
    wrong = ask(server.port, post(b'{"prompt": "Hi"}', "X-Penstock-Status: comments"))
    assert wrong.status == 422
    assert "comments" not in wrong.json()["detail"]
    assert resume(server.port, "a", query="?status_events=1").status == 422
    scrape_until(server, lambda scrape: scrape("penstock_streams_running") == 0)
