"""A client that goes frees its slot at once, in whatever phase and whichever way it goes.

The mock engine has one slot here, and never ends a generation by itself: a slot that was not given
back stays taken.
"""

import re
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support.raw import Connection, ask, generate, open_stream, request
from tests.support.servers import RunningServer, serve

FREE_WITHIN_S = 2.0  # it takes some milliseconds; a machine may be busy

WAYS_TO_GO: dict[str, Callable[[Connection], None]] = {
    "FIN": Connection.close,
    "RST": Connection.reset,
    "half-close": Connection.half_close,
}


@pytest.fixture(scope="module")
def silent() -> Iterator[RunningServer]:
    """An engine that never comes to the first token."""
    with serve(engine="mock", engine_arg=["slots=1", "prefill=600"]) as server:
        yield server


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningServer]:
    """An engine that says three tokens and no more."""
    with serve(engine="mock", mock_interval=0, engine_arg=["slots=1", "hang_at=3"]) as server:
        yield server


@pytest.fixture(scope="module")
def fast() -> Iterator[RunningServer]:
    """An engine that says 1,024 tokens of 8 KB each, as fast as it can."""
    words = "".join(" " + letter * 8000 for letter in "abcdefgh")
    with serve(engine="mock", mock_interval=0, engine_arg=["length=1024", f"text={words}"]) as s:
        yield s


def delete(server: RunningServer, stream_id: str) -> tuple[int, object]:
    answer = ask(server.port, request("DELETE", f"/streams/{stream_id}"))
    return answer.status, answer.json()


def slot_is_free(server: RunningServer) -> bool:
    """Whether a new stream gets a slot as soon as it is accepted, as its timings tell."""
    connection, stream_id = open_stream(server.port, generate())
    with connection:
        delete(server, stream_id)
        *_, end = connection.events()
    return bool(end["timings"]["queue_time"] < end["timings"]["total_time"])


def eventually(is_so: Callable[[], bool], within: float = FREE_WITHIN_S) -> bool:
    deadline = time.monotonic() + within
    while not is_so():
        if time.monotonic() > deadline:
            return False
    return True


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("go", WAYS_TO_GO.values(), ids=WAYS_TO_GO)
@pytest.mark.parametrize("phase", ["prefill", "mid-stream"])
def test_client_that_goes_frees_its_slot_at_once(
    silent: RunningServer,
    hanging: RunningServer,
    phase: str,
    go: Callable[[Connection], None],
    stream: bool,
) -> None:
    server = silent if phase == "prefill" else hanging
    assert eventually(lambda: slot_is_free(server))
    with Connection(server.port) as victim:
        victim.send(generate(stream=stream))
        assert eventually(lambda: not slot_is_free(server))
        if stream:
            assert victim.head().status == 200
            if phase == "mid-stream":
                assert next(victim.events())["index"] == 0
        go(victim)
        assert eventually(lambda: slot_is_free(server))


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("go", WAYS_TO_GO.values(), ids=WAYS_TO_GO)
def test_client_that_goes_leaves_the_line(
    hanging: RunningServer, go: Callable[[Connection], None], stream: bool
) -> None:
    assert eventually(lambda: slot_is_free(hanging))
    holder, holder_id = open_stream(hanging.port, generate())
    with holder, Connection(hanging.port) as victim:
        victim.send(generate(stream=stream))
        if stream:
            assert victim.head().status == 200  # accepted: it is in the line
        next_in_line, next_id = open_stream(hanging.port, generate())
        with next_in_line:
            go(victim)
            assert delete(hanging, holder_id)[0] == 200
            # Were the victim still before it, this one would wait for ever.
            assert next(next_in_line.events())["index"] == 0
            assert delete(hanging, next_id)[0] == 200
    assert eventually(lambda: slot_is_free(hanging))


@pytest.mark.parametrize("go", WAYS_TO_GO.values(), ids=WAYS_TO_GO)
def test_reader_that_goes_after_the_end_or_while_it_replays_leaves_nothing(
    fast: RunningServer, go: Callable[[Connection], None]
) -> None:
    assert eventually(lambda: num_readers(fast) == 0)
    first, stream_id = open_stream(fast.port, generate(max_tokens=200, resumable=True))
    assert list(first.events())[-1]["finish_reason"] == "length"
    go(first)
    with first, Connection(fast.port, receive_buffer=4096) as replaying:
        replaying.send(request("GET", f"/streams/{stream_id}"))  # 1.6 MB: it is not done soon
        assert replaying.head().status == 200
        assert next(replaying.events())["index"] == 0
        assert num_readers(fast) == 1
        go(replaying)
        assert eventually(lambda: num_readers(fast) == 0)
    # Nothing was cancelled by that: the stream has ended, and is kept as it ended.
    assert delete(fast, stream_id)[1] == {"id": stream_id, "finish_reason": "length"}


def num_readers(server: RunningServer) -> int:
    """Responses that are being streamed, as the metrics say."""
    metrics = ask(server.port, request("GET", "/metrics")).body.decode()
    (value,) = re.findall(r"^penstock_readers ([0-9.]+)$", metrics, re.MULTILINE)
    return int(float(value))


def test_client_that_goes_while_it_sends_the_body_leaves_nothing(hanging: RunningServer) -> None:
    for go in WAYS_TO_GO.values():
        with Connection(hanging.port) as victim:
            victim.send(generate()[:-5])
            go(victim)
    assert eventually(lambda: slot_is_free(hanging))


def test_head_comes_before_the_first_token_and_names_the_stream(silent: RunningServer) -> None:
    connection, stream_id = open_stream(silent.port, generate())
    with connection:
        assert len(stream_id) >= 22  # 128 bits, to be unguessable
        assert delete(silent, stream_id)[0] == 200
        assert [event["finish_reason"] for event in connection.events()] == ["cancelled"]


def test_delete_ends_the_readers_stream_with_one_terminal_event(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate("one two"))
    with connection:
        events = connection.events()
        assert [next(events)["index"] for _ in range(3)] == [0, 1, 2]
        assert delete(hanging, stream_id) == (
            200,
            {"id": stream_id, "finish_reason": "cancelled"},
        )
        (end,) = events
        assert end["finished"]
        assert end["finish_reason"] == "cancelled"
        assert end["index"] == 3
        assert end["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_delete_gives_the_same_answer_each_time(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate())
    with connection:
        answers = [delete(hanging, stream_id) for _ in range(3)]
        assert answers == [(200, {"id": stream_id, "finish_reason": "cancelled"})] * 3


def test_delete_after_the_end_tells_how_it_ended(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate(max_tokens=2))
    with connection:
        *_, end = connection.events()
        assert end["finish_reason"] == "length"
        assert delete(hanging, stream_id) == (200, {"id": stream_id, "finish_reason": "length"})


def test_connection_lives_on_after_its_stream_was_cancelled(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate())
    with connection:
        delete(hanging, stream_id)
        list(connection.events())
        connection.send(generate(stream=False, max_tokens=1))
        assert connection.response().json()["text"] == " Water"


def test_tokens_come_before_the_next_one_is_made(hanging: RunningServer) -> None:
    """The fourth token never comes: nothing may wait for it."""
    connection, _ = open_stream(hanging.port, generate())
    with connection:
        events = connection.events()
        tokens = [next(events)["token"] for _ in range(3)]
    assert tokens == [" Water", " comes", " down"]


def test_events_merge_into_fewer_writes_for_a_slow_reader_but_none_is_lost(
    fast: RunningServer,
) -> None:
    with Connection(fast.port, receive_buffer=4096) as slow:
        slow.send(generate(max_tokens=1024))
        # Sent later and read at once: when it is whole, the slow reader's stream has ended too.
        expected = ask(fast.port, generate(max_tokens=1024, stream=False)).json()["text"]
        assert slow.head().status == 200
        chunks = []

        def count(next_chunk: Callable[[], bytes] = slow.chunk) -> bytes:
            chunks.append(next_chunk())
            return chunks[-1]

        slow.chunk = count  # type: ignore[method-assign] # counts what passes through
        *deltas, end = slow.events()
    assert [delta["index"] for delta in deltas] == list(range(1024))
    assert "".join(delta["token"] for delta in deltas) == expected
    assert end["finish_reason"] == "stop"
    assert len(chunks) < 1024 / 2


def test_built_in_model_is_idle_as_soon_as_its_clients_are_gone() -> None:
    with serve(slots=4) as server:
        engine = psutil.Process(server.engine_pid())

        def is_idle() -> bool:
            """It spins while it generates."""
            before = engine.cpu_times()
            time.sleep(0.2)
            after = engine.cpu_times()
            return (after.user + after.system) - (before.user + before.system) <= 0.04

        for go in WAYS_TO_GO.values():
            victims = [Connection(server.port) for _ in range(64)]
            for number, victim in enumerate(victims):
                victim.send(generate("Once upon a time", max_tokens=1024, stream=number % 2 == 0))
            assert victims[0].head().status == 200
            assert next(victims[0].events())["index"] == 0
            for victim in victims:
                go(victim)
            assert eventually(is_idle)
            assert eventually(lambda: slot_is_free(server))
            for victim in victims:
                victim.close()
        assert server.engine_pid() == engine.pid
