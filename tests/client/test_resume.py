"""The steps of a client after each byte, cut and status, without a socket or a real clock."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.client import CutStreamError, PenstockError, RefusedError, UnexpectedAnswerError
from penstock.client.answer import StreamedAnswer
from penstock.client.resume import (
    Backoff,
    Read,
    Reading,
    Reconnect,
    ResumePolicy,
    Step,
    Wait,
    retry_after_s,
)
from tests.client.test_answer import FINISH

CUT = "The connection is gone"


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def event(number: int, **fields: object) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (number, json.dumps(fields).encode())


def log_of(*texts: str) -> list[bytes]:
    """Return the frames of a whole stream."""
    frames = [event(n, token=text, index=n, finished=False) for n, text in enumerate(texts)]
    return [*frames, event(len(texts), **{**FINISH, "index": len(texts)})]


@dataclass
class Told:
    """A record of the calls of `on_cut` and `on_resume`."""

    lines: list[str] = field(default_factory=list)

    def cut(self, why: str) -> None:
        self.lines.append(f"cut: {why}")

    def resumed(self) -> None:
        self.lines.append("resumed")


def a_reading(
    *,
    timeout_s: float = 50,
    clock: FakeClock | None = None,
    chance: float = 1.0,
    told: Told | None = None,
) -> tuple[Reading, FakeClock]:
    clock = clock or FakeClock()
    told = told or Told()
    policy = ResumePolicy(timeout_s, clock=clock, chance=lambda: chance)
    reading = Reading(
        StreamedAnswer(is_resumable=True), policy, on_cut=told.cut, on_resume=told.resumed
    )
    reading.id = "a-stream"
    return reading, clock


def read_all(
    reading: Reading, clock: FakeClock, connections: Iterator[list[bytes]], log: list[bytes]
) -> list[str]:
    """Read to the end. Each connection sends its pieces of the requested rest and is then cut."""
    texts: list[str] = []
    pieces = iter(next(connections))
    while True:
        step = reading.step()
        match step:
            case None:
                text = reading.answer.take()
                if text is None:
                    return texts
                texts.append(text)
            case Wait(seconds):
                clock.now += seconds
            case Reconnect(after):
                rest = b"".join(log[0 if after is None else after + 1 :])
                sent = next(connections)
                pieces = iter(part(rest, sent))
                reading.resumed()
            case Read():
                piece = next(pieces, None)
                reading.cut(CUT) if piece is None else reading.feed(piece)


def part(rest: bytes, like: list[bytes]) -> list[bytes]:
    """Cut the rest into pieces of the same sizes as the pieces of `like`."""
    ends = list(itertools.accumulate(map(len, like), initial=0))
    return [rest[a:b] for a, b in itertools.pairwise(ends)]


# --- no text is lost or repeated

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=6)


@given(TEXTS, st.lists(st.lists(st.integers(0, 90), max_size=5), max_size=8), st.booleans())
@example(["é👋"], [[n] for n in range(40, 70)], False)
def test_any_cuts_of_any_connections_give_the_text_once(
    texts: list[str], sizes: list[list[int]], has_pings: bool
) -> None:
    """`sizes` holds the sizes of the pieces that each connection sends before it is cut."""
    log = log_of(*texts)
    if has_pings:
        log = [b": ping\n" + each for each in log]
    whole = b"".join(log)
    reading, clock = a_reading(timeout_s=10_000)
    blanks = ([bytes(size) for size in connection] for connection in sizes)
    first = part(whole, next(blanks, []))
    connections = itertools.chain([first], blanks, itertools.repeat([bytes(len(whole))]))
    assert read_all(reading, clock, connections, log) == texts
    assert reading.answer.text == "".join(texts)
    assert reading.answer.finish_reason == "stop"
    assert reading.answer.last_taken == len(texts)


def test_a_cut_at_every_byte_gives_the_text_once() -> None:
    log = log_of("Hé", "llo 👋", "!")
    whole = b": ping\n" + b"".join(log)
    for place in range(len(whole)):
        reading, clock = a_reading()
        connections = iter([[whole[:place]], [bytes(len(whole))]])
        assert read_all(reading, clock, connections, log) == ["Hé", "llo 👋", "!"]
        assert reading.num_resumes == 1


def test_one_byte_less_than_an_event_for_ever_is_given_up() -> None:
    """Otherwise a proxy that passes less than one event would hold the client forever."""
    reading, clock = a_reading()
    log = log_of("Hello")
    connections = itertools.repeat([bytes(len(log[0]) - 1)])
    with pytest.raises(CutStreamError, match="could not be resumed in 50 s"):
        read_all(reading, clock, connections, log)
    assert 50 <= clock.now - 1000 <= 51
    assert reading.num_resumes < 20


def test_an_event_that_does_not_follow_is_never_taken() -> None:
    log = log_of("a", "b", "c")
    for wrong in (log[0], log[2], log[3]):
        reading, clock = a_reading()
        reading.feed(log[0])
        assert reading.answer.take() == "a"
        reading.cut(CUT)
        assert list(steps(reading, clock))[-1] == Reconnect(0, 10)
        reading.resumed()
        reading.feed(wrong)
        with pytest.raises(CutStreamError, match="arrived instead of event 1") as raised:
            reading.answer.take()
        assert raised.value.text == "a"
        assert reading.leave()  # it may still run on the server


def test_an_event_with_a_wrong_id_is_never_taken() -> None:
    reading, _ = a_reading()
    reading.feed(event(7, token="a", index=0, finished=False))
    with pytest.raises(CutStreamError, match="event 0 arrived with the id '7'"):
        reading.answer.take()


def test_texts_that_came_before_the_cut_are_given_without_waiting() -> None:
    reading, _ = a_reading()
    reading.feed(b"".join(log_of("a", "b")[:2]))
    reading.cut(CUT)
    assert reading.step() is None
    assert reading.answer.take() == "a"
    assert reading.answer.last_taken == 0
    assert reading.answer.last_received == 1
    assert reading.answer.take() == "b"
    assert isinstance(reading.step(), Wait)


def test_a_terminal_event_needs_no_end_of_the_connection() -> None:
    reading, _ = a_reading()
    reading.feed(b"".join(log_of("a")))
    reading.cut(CUT)
    assert reading.step() is None
    assert reading.answer.take() == "a"
    assert reading.answer.take() is None


# --- waits and limits


def steps(reading: Reading, clock: FakeClock) -> Iterator[Step]:
    """Yield the steps up to the next Reconnect."""
    while (step := reading.step()) is not None:
        yield step
        if isinstance(step, Wait):
            clock.now += step.seconds
        if isinstance(step, Reconnect):
            return


def fail_until_the_end(reading: Reading, clock: FakeClock) -> list[float]:
    """Let every attempt fail at once; return the wait before each."""
    waits: list[float] = []
    reading.cut(CUT)
    while not reading.answer.is_over:
        waits.extend(step.seconds for step in steps(reading, clock) if isinstance(step, Wait))
        reading.cut("Nobody answers")
    return waits


def test_waits_grow_up_to_a_bound_and_the_last_one_ends_in_time() -> None:
    reading, clock = a_reading(timeout_s=20)
    waits = fail_until_the_end(reading, clock)
    assert waits == [0.25, 0.5, 1, 2, 4, 5, 5, 2.25]
    assert clock.now == 1020
    with pytest.raises(CutStreamError) as raised:
        reading.answer.take()
    assert str(raised.value) == f"{CUT}; the stream could not be resumed in 20 s: Nobody answers"
    assert not reading.leave()


def test_chance_halves_a_wait_at_most() -> None:
    backoff = Backoff()
    for attempts in range(200):
        longest = min(5, 0.25 * 2**attempts)
        assert backoff.wait_s(attempts, 0.0) == longest / 2
        assert backoff.wait_s(attempts, 1.0) == longest


def test_an_event_renews_the_time_limit() -> None:
    log = log_of("a", "b", "c")
    reading, clock = a_reading(timeout_s=3)
    for number in range(3):
        reading.feed(log[number])
        reading.answer.take()
        reading.cut(CUT)
        for _ in range(3):
            list(steps(reading, clock))
            reading.cut("Nobody answers")
        list(steps(reading, clock))
        reading.resumed()
        assert reading.step() == Read()
    reading.feed(log[3])
    assert reading.answer.take() is None
    assert reading.num_resumes == 3


def test_time_with_a_connection_does_not_count() -> None:
    """Prefill may take minutes, with heartbeats and no event."""
    reading, clock = a_reading(timeout_s=10)
    for _ in range(4):
        reading.feed(b": ping\n")
        clock.now += 1000
        reading.cut(CUT)
        list(steps(reading, clock))
        reading.resumed()
        assert reading.step() == Read()


def test_an_attempt_is_given_no_more_time_than_there_is() -> None:
    reading, clock = a_reading(timeout_s=12)
    reading.cut(CUT)
    assert list(steps(reading, clock))[-1] == Reconnect(None, 10)
    clock.now += 9
    reading.cut("Nobody answers")
    (_, ask) = steps(reading, clock)
    assert isinstance(ask, Reconnect)
    assert 2 < ask.timeout_s < 3
    clock.now = 1012
    reading.cut("Nobody answers")
    assert reading.answer.is_over


def test_without_a_policy_there_is_one_connection() -> None:
    reading = Reading(StreamedAnswer())
    reading.id = "a-stream"
    reading.cut(CUT)
    with pytest.raises(CutStreamError, match=f"^{CUT}$"):
        reading.answer.take()
    assert not reading.leave()


def test_a_stream_without_an_id_cannot_be_resumed() -> None:
    """A simple server may send no id and ignore `resumable`."""
    reading, _ = a_reading()
    reading.id = None
    reading.cut(CUT)
    with pytest.raises(CutStreamError, match=f"^{CUT}$"):
        reading.answer.take()


def test_the_servers_own_retry_is_the_first_wait() -> None:
    reading, clock = a_reading()
    reading.feed(b"retry: 1500\n\n")
    reading.cut(CUT)
    assert next(steps(reading, clock)) == Wait(1.5)


# --- statuses


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_a_temporary_error_is_retried_after_the_servers_retry_after(status: int) -> None:
    reading, clock = a_reading()
    reading.cut(CUT)
    list(steps(reading, clock))
    reading.refused(RefusedError(status, "Not now."), "7")
    assert next(steps(reading, clock)) == Wait(7)


def test_a_short_retry_after_does_not_shorten_the_back_off() -> None:
    reading, clock = a_reading()
    reading.cut(CUT)
    for _ in range(4):
        list(steps(reading, clock))
        reading.refused(RefusedError(503, "Not now."), "0")
    assert next(steps(reading, clock)) == Wait(4)


def test_a_retry_after_beyond_the_time_limit_ends_the_stream_at_once() -> None:
    reading, clock = a_reading()
    reading.cut(CUT)
    list(steps(reading, clock))
    reading.refused(RefusedError(503, "Come back in an hour."), "3600")
    with pytest.raises(CutStreamError, match="not be resumed in 50 s: Come back in an hour"):
        reading.answer.take()


@pytest.mark.parametrize("status", [404, 410])
def test_a_stream_the_server_no_longer_has_is_lost(status: int) -> None:
    reading, clock = a_reading()
    reading.feed(log_of("a")[0])
    reading.answer.take()
    reading.cut(CUT)
    list(steps(reading, clock))
    refusal = RefusedError(status, "There is no such stream.")
    reading.refused(refusal)
    with pytest.raises(CutStreamError) as raised:
        reading.answer.take()
    assert "the rest is lost" in str(raised.value)
    assert "There is no such stream." in str(raised.value)
    assert (raised.value.text, raised.value.num_deltas) == ("a", 1)
    assert raised.value.__cause__ is refusal
    assert not reading.leave()


@pytest.mark.parametrize(
    "error",
    [*(RefusedError(n, "No.") for n in (204, 307, 400, 401, 409)), UnexpectedAnswerError("No.")],
)
def test_any_other_answer_ends_the_stream(error: PenstockError) -> None:
    reading, clock = a_reading()
    reading.cut(CUT)
    list(steps(reading, clock))
    reading.refused(error)
    with pytest.raises(CutStreamError, match=f"^{CUT}; the stream could not be resumed: No.$"):
        reading.answer.take()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("5", 5),
        (" 12 ", 12),
        ("Thu, 01 Jan 1970 00:17:00 GMT", 20),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-3", 0),
        ("1.5", 0),
        ("soon", 0),
        ("", 0),
        ("٣", 0),  # a digit, but not in HTTP
        ("Thu, 99 Jan 1970 00:17:00 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float) -> None:
    assert retry_after_s(value, now=1000.0) == seconds


# --- callbacks, and leaving


def test_each_cut_and_each_resumption_is_reported_once() -> None:
    told = Told()
    reading, clock = a_reading(told=told)
    reading.cut(CUT)
    for _ in range(2):
        list(steps(reading, clock))
        reading.cut("Nobody answers")
    list(steps(reading, clock))
    reading.refused(RefusedError(503, "Not now."))
    list(steps(reading, clock))
    reading.resumed()
    assert told.lines == [f"cut: {CUT}", "resumed"]
    assert reading.num_resumes == 1


def test_leaving_cancels_on_the_server_once_and_only_while_the_stream_runs() -> None:
    reading, _ = a_reading()
    assert [reading.leave(), reading.leave()] == [True, False]
    reading, _ = a_reading()
    reading.feed(b"".join(log_of("a")))
    assert not reading.leave()
    reading = Reading(StreamedAnswer(is_resumable=True), ResumePolicy(), is_own=False)
    reading.id = "another's"
    assert not reading.leave()


def test_a_stream_is_read_on_after_an_event() -> None:
    log = log_of("a", "b", "c")
    answer = StreamedAnswer(is_resumable=True, after=1)
    answer.feed(b"".join(log[2:]))
    assert [answer.take(), answer.take()] == ["c", None]
    assert answer.last_taken == 3
    assert answer.text == "c"
