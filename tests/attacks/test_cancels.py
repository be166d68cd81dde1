"""Clients that leave: a slot is free when the engine says so; no work piles up in an engine."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.attacks.honest import LONGEST_RESTART_S, honest_client
from tests.support.raw import Connection, cancel_stream, generate, open_stream
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

STOPPING_S = 3.0
NUM_FLOODERS = 8
NUM_CANCELS = 200
NUM_NEIGHBORS = 2
FIRST_TOKEN_S = 10.0
"""Ten times what a neighbor waits on a busy machine with two cores, as the server measures it."""


def test_a_slot_is_free_when_the_engine_has_let_go_of_it_and_not_before() -> None:
    with serve(
        engine="mock", mock_interval=0.01, engine_arg=["slots=1", f"stopping={STOPPING_S}"]
    ) as server:
        first, stream_id = open_stream(server.port, generate(max_tokens=1000))
        with first:
            next(first.events())
            began = time.monotonic()
            cancel_stream(server.port, stream_id)
            scrape = Scrape(server)
            assert scrape("penstock_streams_running") == 0
            assert scrape("penstock_engine_stopping") == 1  # it is not idle
        second, _ = open_stream(server.port, generate(max_tokens=1))
        with second:
            next(second.events())
        assert time.monotonic() - began >= STOPPING_S
        scrape = Scrape(server)
        assert scrape("penstock_engine_stopping") == 0
        assert scrape("penstock_abort_seconds_count") == 1
        assert scrape("penstock_abort_seconds_sum") >= STOPPING_S  # measured at the engine


def test_a_request_that_waits_for_a_cancelled_one_goes_on_if_the_engine_dies() -> None:
    with serve(
        engine="mock", mock_interval=0.01, engine_arg=["slots=1", "stopping=1000"]
    ) as server:
        first, stream_id = open_stream(server.port, generate(max_tokens=1000))
        with first:
            next(first.events())
            cancel_stream(server.port, stream_id)
        waiting, _ = open_stream(server.port, generate(max_tokens=3))
        with waiting:
            os.kill(server.engine_pid(), signal.SIGKILL)
            assert [event["index"] for event in waiting.events()] == [0, 1, 2, 3]


def test_an_engine_that_never_lets_go_of_a_cancelled_request_is_restarted() -> None:
    with serve(
        engine="mock",
        mock_interval=0.01,
        engine_timeout=2,
        engine_arg=["slots=2", "stopping=1000", "length=100000", "context_length=200000"],
    ) as server:
        cancelled, stream_id = open_stream(server.port, generate(max_tokens=1000))
        with cancelled, honest_client(server, longest_pause=LONGEST_RESTART_S):
            next(cancelled.events())
            before = server.engine_pid()
            cancel_stream(server.port, stream_id)
            scrape_until(server, lambda scrape: scrape("penstock_engine_restarts_total") >= 1)
            assert server.engine_pid() != before


@contextlib.contextmanager
def leaving_clients(server: RunningServer, after_s: float) -> Iterator[list[int]]:
    """Keep opening long chats that leave after `after_s` seconds; yield a list of their number."""
    counts = [0] * NUM_FLOODERS
    is_over = threading.Event()

    def flood(number: int) -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError), Connection(server.port) as client:
                client.send(generate("A story about the sea. " * 130, max_tokens=1000))
                time.sleep(after_s)
                client.reset()
                counts[number] += 1

    threads = [threading.Thread(target=flood, args=(each,)) for each in range(NUM_FLOODERS)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_chats_that_leave_at_once_do_not_pile_up_in_llama_cpp() -> None:
    with serve(slots=4) as server:
        engine = psutil.Process(server.engine_pid())
        first, _ = open_stream(server.port, generate(max_tokens=1))
        with first:
            list(first.events())
        num_threads, num_files = engine.num_threads(), engine.num_fds()
        most_threads = most_files = 0
        with leaving_clients(server, after_s=0.005) as counts:
            for number in range(1, NUM_NEIGHBORS + 1):
                wanted = number * NUM_CANCELS // NUM_NEIGHBORS
                assert eventually(lambda wanted=wanted: sum(counts) > wanted)  # type: ignore[misc] # a default binds
                neighbor, _ = open_stream(
                    server.port, generate("Long ago", temperature=0, max_tokens=3)
                )
                with neighbor:
                    *_, end = neighbor.events()
                assert end["finish_reason"] == "length"
                assert end["timings"]["time_to_first_token"] < FIRST_TOKEN_S
                most_threads = max(most_threads, engine.num_threads())
                most_files = max(most_files, engine.num_fds())
        # Python's pool of threads may have grown to its few; llama.cpp's has not.
        assert most_threads <= num_threads + 16
        assert most_files <= num_files + 40
        scrape_until(
            server,
            lambda scrape: (
                scrape("penstock_streams_running") + scrape("penstock_engine_stopping") == 0
            ),
        )
        before = engine.cpu_times()
        time.sleep(1.0)  # the time in which the engine must be idle
        after = engine.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.5
        assert server.engine_pid() == engine.pid


@pytest.mark.parametrize("max_tokens", [1, 300])
def test_a_stopped_llama_cpp_request_has_stopped(max_tokens: int) -> None:
    """Cancels in a prompt and in an answer: the next request gets the slot, with its own answer."""
    with serve(slots=1) as server:
        undisturbed, _ = open_stream(
            server.port, generate("A small boat", temperature=0, max_tokens=9)
        )
        with undisturbed:
            answer = list(undisturbed.events())
        for _ in range(5):
            leaving, stream_id = open_stream(
                server.port, generate("word " * 500, max_tokens=max_tokens)
            )
            with leaving:
                cancel_stream(server.port, stream_id)
            again, _ = open_stream(
                server.port, generate("A small boat", temperature=0, max_tokens=9)
            )
            with again:
                events = list(again.events())
            assert [each["token"] for each in events] == [each["token"] for each in answer]
        assert Scrape(server)("penstock_engine_restarts_total") == 0
