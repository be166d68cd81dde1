"""A server's last minutes: differences of what is counted anyway, and marks of what happened."""

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.observe.history import NUM_MARKS, NUM_SECONDS, History, Now
from penstock.observe.meter import GAP_S, Meter

REFUSALS = {"queue_full"}


class Server:
    """A server whose state a test sets."""

    def __init__(self) -> None:
        self.meter, self.now = Meter(), Now()
        self.history = History(self.meter, lambda: self.now, REFUSALS)


async def test_no_second_is_noted_twice_if_a_sleep_ends_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, clock = Server(), [99.3]

    async def sleep(seconds: float) -> None:
        clock[0] += 0.999 * seconds
        if clock[0] > 105.5:
            raise asyncio.CancelledError

    monkeypatch.setattr("penstock.observe.history.time.time", lambda: clock[0])
    monkeypatch.setattr("penstock.observe.history.asyncio.sleep", sleep)
    with contextlib.suppress(asyncio.CancelledError):
        await server.history.run()
    assert [each.time for each in server.history.seconds_after(0)] == [100, 101, 102, 103, 104, 105]


def test_a_second_has_what_was_new_in_it() -> None:
    server = Server()
    server.now = Now(tokens=12, running=3, waiting=2)
    server.meter.engine_gap.add(0.02)
    server.meter.refused("queue_full")
    server.meter.refused("unknown_field")  # the client's own fault
    server.history.note(100)
    server.now = Now(tokens=15, running=1)
    server.history.note(101)
    first, second = server.history.seconds_after(0)
    assert (first.time, first.tokens, first.running, first.waiting, first.refused) == (
        *(100, 12, 3, 2),
        1,
    )
    assert (second.time, second.tokens, second.running, second.waiting, second.refused) == (
        *(101, 3, 1, 0),
        0,
    )
    assert first.itl is not None
    assert first.ttft is second.ttft is second.itl is None


@given(st.lists(st.floats(0.0001, 40.0), min_size=1, max_size=200))
def test_percentiles_are_exact_to_their_bucket(gaps: list[float]) -> None:
    server = Server()
    server.meter.engine_gap.add(0.123)
    server.history.note(1)
    for gap in gaps:
        server.meter.engine_gap.add(gap)
    server.history.note(2)
    (second,) = server.history.seconds_after(1)
    assert second.itl is not None
    for part, found in zip((0.5, 0.95), second.itl, strict=True):
        low, high = bucket_of(exact(gaps, part))
        assert low <= found <= high


def exact(values: Sequence[float], part: float) -> float:
    """Return the smallest value that this part of all values does not exceed."""
    ordered = sorted(values)
    return next(v for n, v in enumerate(ordered, 1) if n >= part * len(ordered))


def bucket_of(value: float) -> tuple[float, float]:
    at = bisect_left(GAP_S, value)
    if at == len(GAP_S):  # the last bucket has no upper bound
        return GAP_S[-1], GAP_S[-1]
    return (GAP_S[at - 1] if at else 0.0), GAP_S[at]


def test_everything_that_happens_to_a_server_leaves_a_mark() -> None:
    server = Server()
    for number, state in enumerate(
        [
            Now(engine="down"),
            Now(engine="ready", restarts=1),
            Now(restarts=1, takeovers=3),
            Now(restarts=1, takeovers=3, memory_is_full=True, store_up=False),
            Now(restarts=1, takeovers=3, draining=True),
            Now(restarts=1, takeovers=3, draining=True, upstreams={"m": (2, 2), "": (0, 1)}),
            Now(restarts=1, takeovers=3, draining=True, upstreams={"m": (1, 2), "": (1, 1)}),
        ]
    ):
        server.now = state
        server.history.note(number)
    server.meter.refused("queue_full")
    server.history.note(9)
    assert [(mark.time, mark.kind, mark.text) for mark in server.history.marks_after(0)] == [
        (0, "engine", "The engine is down."),
        (1, "engine", "The engine ended and was started again."),
        (1, "engine", "The engine is ready."),
        (2, "takeover", "3 streams of another server continue here."),
        (3, "memory", "The memory is nearly full."),
        (3, "store", "The store does not answer."),
        (4, "drain", "The server drains: it takes no new requests."),
        (4, "memory", "The memory is free again."),
        (4, "store", "The store answers again."),
        (5, "upstream", "0 of 1 upstreams of a model are up."),
        (6, "upstream", "1 of 2 upstreams of m are up."),
        (6, "upstream", "1 of 1 upstreams of a model are up."),
        (9, "refusal", "1 request refused: queue_full."),
    ]


def test_only_the_last_minutes_are_kept_and_a_late_reader_gets_what_is_left() -> None:
    server = Server()
    for time in range(2 * NUM_SECONDS):
        server.meter.refused("queue_full")
        server.history.note(time)
    assert server.history.num_seconds == server.history.num_marks == 2 * NUM_SECONDS
    assert [each.time for each in server.history.seconds_after(0)] == list(
        range(NUM_SECONDS, 2 * NUM_SECONDS)
    )
    assert len(server.history.marks_after(0)) == NUM_MARKS
    assert [each.time for each in server.history.seconds_after(2 * NUM_SECONDS - 2)] == [
        2 * NUM_SECONDS - 2,
        2 * NUM_SECONDS - 1,
    ]
    assert server.history.seconds_after(2 * NUM_SECONDS) == []
