"""`--pace` holds tokens back in the engine's process: streams, slots and restarts are real."""

import os
import re
import signal
import time

from tests.support.raw import ask, cancel_stream, generate, open_stream, text_of
from tests.support.servers import serve

NUMBERED = ["numbered=true", "length=30"]


def test_a_paced_stream_gets_its_tokens_in_order_and_no_faster() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=NUMBERED, pace=20) as server:
        begin = time.monotonic()
        connection, _ = open_stream(server.port, generate("Pace", max_tokens=30))
        with connection:
            arrivals = [(time.monotonic(), event) for event in connection.events()]
        events = [event for _, event in arrivals]
        assert text_of(events) == "".join(f"Pace:{n} " for n in range(30))
        assert [event["index"] for event in events] == list(range(31))
        assert arrivals[-1][0] - begin >= 29 / 20
        # The last event does not wait: it comes with the last token.
        assert events[-1]["timings"]["tokens_per_second"] <= 400  # the mock makes thousands


def test_a_paced_request_keeps_its_slot_until_its_last_token_was_due() -> None:
    """The mock has finished the first request long before the second one gets the slot."""
    flags = {"engine": "mock", "mock_interval": 0, "engine_arg": NUMBERED, "slots": 1}
    with serve(**flags, pace=0.2) as server:
        first, _ = open_stream(server.port, generate("First", max_tokens=2))  # five seconds
        second, _ = open_stream(server.port, generate("Second", max_tokens=1))
        with first, second:
            assert b"queue position=1" in second.chunk()
            assert text_of(list(first.events())) == "First:0 First:1 "
            assert text_of(list(second.events())) == "Second:0 "


def test_a_cancel_drops_what_is_held_back_and_frees_the_slot() -> None:
    """Token 2 of the first request was due after 1,000 seconds."""
    flags = {"engine": "mock", "mock_interval": 0, "engine_arg": NUMBERED, "slots": 1}
    with serve(**flags, pace=0.001) as server:
        connection, stream_id = open_stream(server.port, generate("Stop", resumable=True))
        with connection:
            events = connection.events()
            assert next(events)["token"] == "Stop:0 "
            cancel_stream(server.port, stream_id)
            (last,) = events
            assert last["finish_reason"] == "cancelled"
            assert last["usage"]["completion_tokens"] == 1
        answer = ask(server.port, generate("Next", max_tokens=1, stream=False))
        assert answer.json()["text"] == "Next:0 "


def test_the_pace_goes_on_after_the_engine_died() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=NUMBERED, pace=5) as server:
        begin = time.monotonic()
        connection, _ = open_stream(server.port, generate("Die", max_tokens=30))
        with connection:
            events = connection.events()
            seen = [next(events) for _ in range(5)]
            killed = time.monotonic()
            os.kill(server.engine_pid(), signal.SIGKILL)
            seen += events
        assert text_of(seen) == "".join(f"Die:{n} " for n in range(30))
        assert killed - begin >= 4 / 5
        # Each engine's first token need not wait, and perhaps some have left the first one's
        # process before its death. Without its pace the second would send the rest at once.
        assert time.monotonic() - begin >= 25 / 5


def test_the_built_in_model_is_paced_unless_told_otherwise_and_the_banner_says_so() -> None:
    with serve(pace=None) as server:
        begin = time.monotonic()
        connection, _ = open_stream(server.port, generate(max_tokens=31, seed=1))
        with connection:
            *_, last = connection.events()
        assert server.has_said("turn it off with --pace 0")
        banner = "".join(server.output)
        assert last["usage"]["completion_tokens"] > 10
        assert time.monotonic() - begin >= (last["usage"]["completion_tokens"] - 3) / 30
    assert re.search(r"pace +30 tokens/s.*turn it off with --pace 0", banner)
