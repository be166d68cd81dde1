"""An answer is measured the same, however its bytes are split."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.answer import (
    CUT,
    ERROR_EVENT,
    NOT_EVENTS,
    TIMEOUT,
    MeasuredAnswer,
    Usage,
    error_message,
)
from tests.support.bench_events import DONE, END, ROLE, SSE, chunk, frame, text, usage

TIMES = st.floats(0, 1000, allow_nan=False)


def answer(*pieces: bytes, status: int = 200, headers: dict[str, str] = SSE) -> MeasuredAnswer:
    """Return an answer whose pieces came at 1, 2, 3... seconds and whose body then ended."""
    made = MeasuredAnswer(0.0, 0.0)
    made.head(status, headers)
    for now, piece in enumerate(pieces, 1):
        made.piece(piece, float(now))
    made.complete(len(pieces) + 1.0)
    return made


@given(
    st.lists(st.sampled_from([text(), text("né\n"), chunk({"reasoning_content": "hm"})])),
    st.data(),
)
def test_a_token_s_time_is_that_of_the_piece_which_completed_its_event(
    tokens: list[bytes], data: st.DataObject
) -> None:
    frames = [ROLE, *tokens, END, usage(7, 3 * len(tokens)), DONE]
    body = b"".join(frames)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=12)))
    bounds = [0, *cuts, len(body)]
    times = sorted(data.draw(st.lists(TIMES, min_size=len(bounds) - 1, max_size=len(bounds) - 1)))
    intended = data.draw(st.floats(-10, 0))

    made = MeasuredAnswer(intended, 0.0)
    made.head(200, SSE)
    for (first, last), now in zip(itertools.pairwise(bounds), times, strict=True):
        made.piece(body[first:last], now)
    made.complete(2000.0)

    ends = list(itertools.accumulate(map(len, frames)))
    when = [times[next(n for n, last in enumerate(bounds[1:]) if last >= end)] for end in ends]
    arrivals = when[1:-3]
    assert list(made.arrivals) == arrivals
    assert made.gaps_s == [after - before for before, after in itertools.pairwise(arrivals)]
    assert made.ttft_s == (arrivals[0] - intended if arrivals else None)
    assert made.e2e_s == when[-1] - intended
    assert made.usage == Usage(7, 3 * len(tokens))
    assert made.has_finished


def test_time_per_token_is_by_the_server_s_count_not_by_events() -> None:
    made = answer(text(), text(), text(), END + usage(1, 9) + DONE)
    assert made.gaps_s == [1.0, 1.0]
    assert made.tpot_s == 2.0 / 8


def test_without_usage_there_is_no_time_per_token() -> None:
    assert answer(text(), text(), END + DONE).tpot_s is None


def test_a_finish_reason_and_an_orderly_end_need_no_done() -> None:
    made = answer(text(), END)
    assert made.has_finished
    assert made.e2e_s == 2.0


def test_an_orderly_end_without_a_terminal_is_a_cut() -> None:
    made = answer(text(), text())
    assert (made.failure, made.ended) == (CUT, None)


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "The engine died.", "code": "engine_died"}},
        {"error": "The engine died."},
        {"object": "error", "message": "The engine died."},
    ],
)
def test_an_error_in_the_stream_is_a_failure_with_its_sentence(event: dict[str, Any]) -> None:
    made = answer(text(), frame(event), DONE)
    assert (made.failure, made.message) == (ERROR_EVENT, "The engine died.")
    assert not made.has_finished


def test_the_first_cause_stands() -> None:
    made = answer(text(), frame({"error": "first"}))
    made.fail(TIMEOUT, "second")
    assert (made.failure, made.message) == (ERROR_EVENT, "first")


def test_what_comes_after_the_end_changes_nothing() -> None:
    made = answer(text(), END + DONE, text())
    made.fail(TIMEOUT)
    assert (made.failure, len(made.arrivals)) == (None, 1)


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: [1]\n\n", b'data: {"choices": 3}\n\n'])
def test_events_of_another_kind_are_no_answer(data: bytes) -> None:
    assert answer(data, DONE).failure == NOT_EVENTS


def test_an_answer_in_one_piece_is_no_stream() -> None:
    made = answer(b'{"choices": []}', headers={"content-type": "application/json"})
    assert made.failure == NOT_EVENTS


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "Slow down."}}',
        b'{"error": "Slow down."}',
        b'{"message": "Slow down."}',
        b'{"title": "Too many", "detail": "Slow down."}',
    ],
)
def test_a_refusal_s_sentence_is_found(body: bytes) -> None:
    made = answer(body[:9], body[9:], status=429, headers={})
    assert (made.failure, made.message) == ("HTTP 429", "Slow down.")


@given(st.binary() | st.sampled_from([b"[]", b'{"detail": [1]}', b'{"error": {"message": 5}}']))
def test_a_refusal_without_one_says_nothing(body: bytes) -> None:
    assert error_message(body) == ""
