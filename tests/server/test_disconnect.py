"""A client that leaves frees its slot at once, in every phase and in every way of leaving.

The mock engine has one slot here and never ends a generation by itself, so a leaked slot stays
taken.
"""

import re
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support.raw import (
    WAYS_TO_GO,
    Connection,
    ask,
    cancel_stream,
    generate,
    open_stream,
    request,
)
from tests.support.servers import RunningServer, serve
from tests.support.waiting import soon


@pytest.fixture(scope="module")
def silent() -> Iterator[RunningServer]:
    """An engine that never makes its first token."""
    with serve(engine="mock", engine_arg=["slots=1", "prefill=600"]) as server:
        yield server


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningServer]:
    """An engine that makes three tokens and then hangs."""
    with serve(engine="mock", mock_interval=0, engine_arg=["slots=1", "hang_at=3"]) as server:
        yield server


@pytest.fixture(scope="module")
def fast() -> Iterator[RunningServer]:
    """An engine that makes 1,024 tokens of 8 KB each, as fast as it can."""
    words = "".join(" " + letter * 8000 for letter in "abcdefgh")
    with serve(engine="mock", mock_interval=0, engine_arg=["length=1024", f"text={words}"]) as s:
        yield s


def slot_is_free(server: RunningServer) -> bool:
    """True if a new stream gets a slot as soon as it is accepted, by its own timings."""
    connection, stream_id = open_stream(server.port, generate())
    with connection:
        cancel_stream(server.port, stream_id)
        *_, end = connection.events()
    return bool(end["timings"]["queue_time"] < end["timings"]["total_time"])


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("go", WAYS_TO_GO.values(), ids=WAYS_TO_GO)
@pytest.mark.parametrize("phase", ["prefill", "mid-stream"])
def test_a_client_that_leaves_frees_its_slot_at_once(
    silent: RunningServer,
    hanging: RunningServer,
    phase: str,
    go: Callable[[Connection], None],
    stream: bool,
) -> None:
    server = silent if phase == "prefill" else hanging
    assert soon(lambda: slot_is_free(server))
    with Connection(server.port) as victim:
        victim.send(generate(stream=stream))
        assert soon(lambda: not slot_is_free(server))
        if stream:
            assert victim.head().status == 200
            if phase == "mid-stream":
                assert next(victim.events())["index"] == 0
        go(victim)
        assert soon(lambda: slot_is_free(server))


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("go", WAYS_TO_GO.values(), ids=WAYS_TO_GO)
def test_a_client_that_leaves_gives_up_its_place_in_the_queue(
    hanging: RunningServer, go: Callable[[Connection], None], stream: bool
) -> None:
    assert soon(lambda: slot_is_free(hanging))
    holder, holder_id = open_stream(hanging.port, generate())
    with holder, Connection(hanging.port) as victim:
        victim.send(generate(stream=stream))
        if stream:
            assert victim.head().status == 200  # accepted, so it is in the queue
        next_in_queue, next_id = open_stream(hanging.port, generate())
        with next_in_queue:
            go(victim)
            assert cancel_stream(hanging.port, holder_id) == "cancelled"
            # If the victim were still in the queue, it would get the slot and never give it back.
            assert next(next_in_queue.events())["index"] == 0
            assert cancel_stream(hanging.port, next_id) == "cancelled"
    assert soon(lambda: slot_is_free(hanging))


@pytest.mark.parametrize("go", WAYS_TO_GO.values(), ids=WAYS_TO_GO)
def test_a_reader_that_leaves_after_the_end_or_during_a_replay_leaves_nothing_behind(
    fast: RunningServer, go: Callable[[Connection], None]
) -> None:
    assert soon(lambda: num_readers(fast) == 0)
    first, stream_id = open_stream(fast.port, generate(max_tokens=200, resumable=True))
    assert list(first.events())[-1]["finish_reason"] == "length"
    go(first)
    with first, Connection(fast.port, receive_buffer=4096) as replaying:
        replaying.send(request("GET", f"/streams/{stream_id}"))  # 1.6 MB, which takes a while
        assert replaying.head().status == 200
        assert next(replaying.events())["index"] == 0
        assert soon(lambda: num_readers(fast) == 1)
        go(replaying)
        assert soon(lambda: num_readers(fast) == 0)
    # The stream is kept as it ended: leaving cancelled nothing.
    assert cancel_stream(fast.port, stream_id) == "length"


def num_readers(server: RunningServer) -> int:
    """Return the number of responses that are being streamed, from the metrics."""
    metrics = ask(server.port, request("GET", "/metrics")).body.decode()
    (value,) = re.findall(r"^penstock_readers ([0-9.]+)$", metrics, re.MULTILINE)
    return int(float(value))


def test_a_client_that_leaves_during_its_upload_leaves_nothing_behind(
    hanging: RunningServer,
) -> None:
    for go in WAYS_TO_GO.values():
        with Connection(hanging.port) as victim:
            victim.send(generate()[:-5])
            go(victim)
    assert soon(lambda: slot_is_free(hanging))


def test_head_comes_before_the_first_token_and_names_the_stream(silent: RunningServer) -> None:
    connection, stream_id = open_stream(silent.port, generate())
    with connection:
        assert len(stream_id) >= 22  # 128 bits, to be unguessable
        assert cancel_stream(silent.port, stream_id) == "cancelled"
        assert [event["finish_reason"] for event in connection.events()] == ["cancelled"]


def test_delete_ends_the_readers_stream_with_one_terminal_event(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate("one two"))
    with connection:
        events = connection.events()
        assert [next(events)["index"] for _ in range(3)] == [0, 1, 2]
        assert cancel_stream(hanging.port, stream_id) == "cancelled"
        (end,) = events
        assert end["finished"]
        assert end["finish_reason"] == "cancelled"
        assert end["index"] == 3
        assert end["usage"] == {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "cached_tokens": 0,
        }


def test_delete_gives_the_same_answer_each_time(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate())
    with connection:
        assert [cancel_stream(hanging.port, stream_id) for _ in range(3)] == ["cancelled"] * 3


def test_delete_after_the_end_tells_how_it_ended(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate(max_tokens=2))
    with connection:
        *_, end = connection.events()
        assert end["finish_reason"] == "length"
        assert cancel_stream(hanging.port, stream_id) == "length"


def test_connection_lives_on_after_its_stream_was_cancelled(hanging: RunningServer) -> None:
    connection, stream_id = open_stream(hanging.port, generate())
    with connection:
        cancel_stream(hanging.port, stream_id)
        list(connection.events())
        connection.send(generate(stream=False, max_tokens=1))
        assert connection.response().json()["text"] == " Water"


def test_tokens_come_before_the_next_one_is_made(hanging: RunningServer) -> None:
    """The fourth token never comes, so nothing may wait for it."""
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
        # This request starts later and is read at once: when it ends, the slow stream has too.
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
            assert soon(is_idle)
            assert soon(lambda: slot_is_free(server))
            for victim in victims:
                victim.close()
        assert server.engine_pid() == engine.pid
