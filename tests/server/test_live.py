"""`GET /live/events`: what a watcher sees of the streams, who may watch, and what it may cost."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.api.live.watching import MAX_WATCHERS
from tests.support.keyed import Keys, reload_keys
from tests.support.raw import Connection, ask, cancel_stream, generate, open_stream, request
from tests.support.servers import RunningServer, serve
from tests.support.watching import Watch

PATH = "/live/events"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Serve two streams at once, whose answers last until they are cancelled."""
    with serve(engine="mock", mock_interval=0.02, slots=2, engine_arg=["length=100000"]) as server:
        yield server


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.toml", "alice", "admin")


def endless(**fields: Any) -> bytes:
    """Build a request for an answer that lasts until it is cancelled."""
    return generate(max_tokens=100_000, **fields)


def test_a_stream_s_life_is_told_from_the_queue_to_its_end(server: RunningServer) -> None:
    with Watch(server.port) as watch:
        opened = [open_stream(server.port, endless()) for _ in range(3)]
        ids = [stream_id for _, stream_id in opened]
        row = watch.until_state(ids[0], "running")
        assert row["prompt_tokens"] > 0
        assert row["readers"] == 1
        assert "place" not in row
        watch.until(lambda: watch.streams.get(ids[2], {}).get("place") == 1)
        assert watch.streams[ids[2]]["state"] == "queued"
        # The engine may not have begun with the second one yet.
        watch.until(lambda: (watch.server["running"], watch.server["waiting"]) == (2, 1))
        before = watch.streams[ids[0]]["tokens"]
        watch.until(lambda: watch.streams[ids[0]]["tokens"] > before)
        watch.until(lambda: watch.streams[ids[0]].get("rate", 0) > 0)
        cancel_stream(server.port, ids[0])
        ended = watch.until_state(ids[0], "ended")
        assert ended["reason"] == "cancelled"
        assert ended.get("readers", 0) == ended.get("rate", 0) == 0
        assert watch.until_state(ids[2], "running")["since"] >= ended["opened"]
        for each in ids[1:]:
            cancel_stream(server.port, each)
            watch.until_state(each, "ended")
        for connection, _ in opened:
            connection.close()


def test_a_new_watcher_gets_everything_at_once_and_then_only_what_changes(
    server: RunningServer,
) -> None:
    connection, running = open_stream(server.port, endless())
    with connection, Watch(server.port) as early:
        early.until_state(running, "running")
        early.until(lambda: len(early.seconds) > 0)
        with Watch(server.port) as late:
            assert late.num_events == 1
            assert late.streams[running]["max_tokens"] == 100_000
            assert len(late.seconds) >= len(early.seconds)
            assert late.marks[: len(early.marks)] == early.marks
            assert [late.next() for _ in range(3)] == ["change"] * 3
    with Watch(server.port) as watch:
        watch.until(lambda: watch.server["running"] == 0)


def test_a_cut_and_the_reader_that_comes_back_are_told(server: RunningServer) -> None:
    connection, stream_id = open_stream(server.port, endless(resumable=True))
    with Watch(server.port) as watch:
        watch.until_state(stream_id, "running")
        connection.close()
        assert watch.until_state(stream_id, "cut").get("readers", 0) == 0
        with Connection(server.port) as again:
            again.send(request("GET", f"/streams/{stream_id}"))
            assert watch.until_state(stream_id, "resumed")["resumes"] == 1
            watch.until_state(stream_id, "running")
            cancel_stream(server.port, stream_id)
        watch.until_state(stream_id, "ended")


def test_a_reader_that_takes_nothing_has_a_lag() -> None:
    # Far more than the kernel's buffers take, and enough to be seen before the end.
    long = ["length=1000000", "context_length=2000000"]
    with serve(engine="mock", mock_interval=0, engine_arg=long) as fast:
        slow = Connection(fast.port, receive_buffer=4096).send(generate(max_tokens=1_000_000))
        with slow, Watch(fast.port) as watch:
            watch.until(lambda: any(row.get("lag", 0) > 1000 for row in watch.streams.values()))
            (row,) = watch.streams.values()
            assert row["lag_bytes"] >= row["lag"]  # a token has at least a byte


def test_a_frozen_and_a_killed_engine_are_told_with_the_tokens_that_are_kept() -> None:
    with serve(engine="mock", mock_interval=0.02, engine_arg=["length=100000"]) as server:
        connection, stream_id = open_stream(server.port, endless())
        with connection, Watch(server.port) as watch:
            watch.until_state(stream_id, "running")
            os.kill(server.engine_pid(), signal.SIGSTOP)
            kept = watch.until_state(stream_id, "stalled")["tokens"]
            os.kill(server.engine_pid(), signal.SIGKILL)
            assert watch.until_state(stream_id, "restarting")["tokens"] >= kept
            watch.until(lambda: watch.streams[stream_id]["tokens"] > kept)
            assert watch.until_state(stream_id, "running")["tokens"] > kept
            watch.until(lambda: "The engine ended and was started again." in texts(watch))
            assert watch.server["engine_restarts"] == 1


def texts(watch: Watch) -> list[str]:
    return [mark["text"] for mark in watch.marks]


def test_seconds_and_refusals_are_told() -> None:
    with (
        serve(
            engine="mock", mock_interval=0.01, slots=1, max_queue=1, engine_arg=["length=100000"]
        ) as server,
        Watch(server.port) as watch,
    ):
        answered = ask(server.port, generate(stream=False, max_tokens=20))
        assert answered.status == 200
        busy = [open_stream(server.port, endless()) for _ in range(2)]
        refused = ask(server.port, generate())
        assert refused.status == 429
        assert ask(server.port, request("GET", "/nowhere")).status == 404  # no refusal
        watch.until(lambda: sum(each["refused"] for each in watch.seconds) == 1)
        assert "1 request refused: queue_full." in texts(watch)
        watch.until(lambda: sum(each["tokens"] for each in watch.seconds) >= 20)
        # A second may end between two tokens.
        watch.until(lambda: any(each["ttft"] for each in watch.seconds))
        watch.until(lambda: any(each["itl"] for each in watch.seconds))
        assert sum(mark["kind"] == "refusal" for mark in watch.marks) == 1
        for connection, _ in busy:
            connection.close()


def test_with_keys_only_an_admin_key_may_watch_and_only_names_are_told(keys: Keys) -> None:
    with serve(
        engine="mock", mock_interval=0.02, keys=keys.path, engine_arg=["length=100000"]
    ) as server:
        assert ask(server.port, request("GET", PATH)).status == 401
        refused = ask(server.port, request("GET", PATH, keys.header("alice")))
        assert (refused.status, refused.json()["code"]) == (403, "admin_only")
        with Watch(server.port, keys.header("admin")) as watch:
            connection, stream_id = open_stream(
                server.port, keys.generate("alice", max_tokens=100_000)
            )
            with connection:
                assert watch.until_state(stream_id, "running")["key"] == "alice"
                assert all(key not in str(watch.streams) for key in keys.keys.values())
                cancel_stream(server.port, stream_id, keys.header("admin"))
                watch.until_state(stream_id, "ended")


def test_a_watcher_whose_key_is_revoked_is_ended(keys: Keys) -> None:
    with (
        serve(engine="mock", keys=keys.path) as server,
        Watch(server.port, keys.header("admin")) as watch,
    ):
        del keys.keys["admin"]
        keys.write()
        reload_keys(server)
        with pytest.raises(StopIteration):
            watch.until(lambda: False)


def test_without_keys_only_this_machine_may_watch(server: RunningServer) -> None:
    for header in ("X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1", "X-Real-IP: ::1"):
        refused = ask(server.port, request("GET", PATH, header))
        assert (refused.status, refused.json()["code"]) == (403, "admin_only")
    foreign = request("GET", PATH, "Origin: https://evil.example")
    assert ask(server.port, foreign).json()["code"] == "origin_not_allowed"
    rebound = request("GET", PATH).replace(b"Host: localhost", b"Host: evil.example")
    assert ask(server.port, rebound).json()["code"] == "host_not_allowed"


@pytest.mark.parametrize("interval", ["0.09", "5.1", "0", "-1", "nan", "inf", "x", ""])
def test_an_interval_out_of_bounds_is_refused(server: RunningServer, interval: str) -> None:
    refused = ask(server.port, request("GET", f"{PATH}?interval={interval}"))
    assert (refused.status, refused.json()["code"]) == (422, "out_of_range")


def test_few_may_watch_and_a_place_is_free_again_when_one_leaves() -> None:
    # At a server of its own: no watcher of another test may still have a place.
    with serve(engine="mock") as server:
        watches = [Watch(server.port) for _ in range(MAX_WATCHERS)]
        refused = ask(server.port, request("GET", PATH))
        assert (refused.status, refused.json()["code"]) == (429, "too_many_watchers")
        watches.pop().connection.reset()
        while ask_status(server.port) == 429:
            watches[0].next()
        for watch in watches:
            watch.connection.close()


def ask_status(port: int) -> int:
    with Connection(port) as connection:
        return connection.send(request("GET", PATH)).head().status


def test_a_stopping_server_ends_its_watchers_after_its_streams() -> None:
    flags = {"engine": "mock", "mock_interval": 0.02, "engine_arg": ["length=400"]}
    with serve(**flags, drain_timeout=60) as server:
        connection, stream_id = open_stream(server.port, generate(max_tokens=1000))
        with connection, Watch(server.port) as watch:
            watch.until_state(stream_id, "running")
            server.signal(signal.SIGTERM)
            watch.until(lambda: watch.server["draining"])
            assert watch.until_state(stream_id, "ended")["reason"] == "stop"
            with pytest.raises(StopIteration):
                watch.until(lambda: False)
        assert server.process.wait(timeout=30) == 0


def test_watching_over_tls_s_server_works_as_well() -> None:
    with (
        serve("--http2", engine="mock", mock_interval=0.02, engine_arg=["length=100000"]) as server,
        Watch(server.port) as watch,
    ):
        connection, stream_id = open_stream(server.port, endless())
        with connection:
            watch.until_state(stream_id, "running")
        watch.until_state(stream_id, "ended")
