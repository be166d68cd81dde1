import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.event_ids import id_line
from penstock.api.native.frames import NativeFrames
from penstock.events import Delta, Event, Failure, Finish, Timings, Usage
from penstock.sse import Parser

TIMINGS = Timings(0.001, 0.02, 1.5, 50.0)
ID_LINE = id_line("abc")
END = Finish("length", Usage(4, 2), TIMINGS)


def events_of(data: bytes) -> list[dict[str, object]]:
    return [json.loads(event.data) for event in Parser().feed(data)]


def test_a_stream_is_framed_as_plain_sse_clients_read_it() -> None:
    log: list[Event] = [Delta(" AI", 1), Delta(" is", 1), END]
    first, second, last = events_of(NativeFrames().frame([(0, log)]))
    assert first == {"token": " AI", "index": 0, "finished": False}
    assert second == {"token": " is", "index": 1, "finished": False}
    assert last == {
        "token": "",
        "index": 2,
        "finished": True,
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 2,
            "total_tokens": 6,
            "cached_tokens": 0,
        },
        "timings": {
            "queue_time": 0.001,
            "time_to_first_token": 0.02,
            "total_time": 1.5,
            "tokens_per_second": 50.0,
        },
    }


def test_a_failure_is_a_terminal_event_of_the_same_shape() -> None:
    end = Failure("engine_died", "It stopped.", True, Usage(4, 0), TIMINGS)
    (event,) = events_of(NativeFrames().frame([(0, [end])]))
    assert event["finished"] is True
    assert event["finish_reason"] == "error"
    assert event["error"] == {
        "code": "engine_died",
        "message": "It stopped.",
        "retry_safe": True,
    }


def test_an_answer_that_its_seed_no_longer_gives_says_so() -> None:
    (usual,) = events_of(NativeFrames().frame([(0, [END])]))
    (event,) = events_of(
        NativeFrames().frame([(0, [msgspec.structs.replace(END, reproducible=False)])])
    )
    assert "reproducible" not in usual
    assert event == {**usual, "reproducible": False}


def test_a_failure_of_a_resumable_stream_says_after_which_event_to_resume() -> None:
    end = Failure("server_shutdown", "It stops.", True, Usage(4, 1), TIMINGS)
    _, event = events_of(
        NativeFrames(id_line=ID_LINE).frame([(0, [Delta("a", 1), Delta("b", 1), end])])
    )[1:]
    assert event["error"] == {
        "code": "server_shutdown",
        "message": "It stops.",
        "retry_safe": True,
        "resume_after": 1,
    }


@given(st.lists(st.text(min_size=1), max_size=8), st.data())
def test_an_event_has_the_same_bytes_for_every_reader(
    texts: list[str], data: st.DataObject
) -> None:
    log: list[Event] = [*(Delta(text, 1) for text in texts), END]
    cursor = data.draw(st.integers(0, len(log)))
    before = NativeFrames(id_line=ID_LINE).frame([(0, log[:cursor])])
    after = NativeFrames(cursor, ID_LINE).frame([(0, log[cursor:])])
    assert before + after == NativeFrames(id_line=ID_LINE).frame([(0, log)])
    ids = [event.id for event in Parser().feed(before + after)]
    assert ids == [f"abc.{index}" for index in range(len(log))]


@given(st.lists(st.text(min_size=1), max_size=8), st.integers(0, 8))
def test_any_text_survives_framing_in_any_batches(texts: list[str], cut: int) -> None:
    """CR, LF, U+2028, NUL and text that looks like an event stay inside their event."""
    log: list[Event] = [*(Delta(text, 1) for text in texts), END]
    frames = NativeFrames()
    events = events_of(frames.frame([(0, log[:cut])]) + frames.frame([(0, log[cut:])]))
    assert [event["token"] for event in events] == [*texts, ""]
    assert [event["index"] for event in events] == list(range(len(texts) + 1))
