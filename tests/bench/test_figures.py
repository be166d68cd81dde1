"""Figures of known answers."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.answer import TIMEOUT, UNFINISHED, MeasuredAnswer, Usage
from penstock.bench.figures import ClientFigures, client_figures, figures, is_good, percentiles

KEEPS_UP = ClientFigures(0.1, 0.2, None, None, was_bottleneck=False, reasons=[])


def answer(
    *arrivals: float, ended: float | None = None, tokens: int | None = None
) -> MeasuredAnswer:
    """Return a finished answer that was due at 0."""
    made = MeasuredAnswer(0.0, 0.0)
    made.arrivals.extend(arrivals)
    made.ended = arrivals[-1] if ended is None else ended
    if tokens is not None:
        made.usage = Usage(10, tokens)
    return made


def failed(kind: str) -> MeasuredAnswer:
    made = MeasuredAnswer(0.0, 0.0)
    made.arrivals.append(0.001)
    made.fail(kind, f"{kind}, in words")
    return made


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float]) -> None:
    found = percentiles(values)
    assert found is not None
    for percent, value in [(50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99)]:
        enough = [v for v in values if 100 * sum(w <= v for w in values) >= percent * len(values)]
        assert value == min(enough)
    assert found.max == max(values)
    assert found.count == len(values)
    assert found.mean == pytest.approx(math.fsum(values) / len(values))


def test_of_nothing_there_are_no_percentiles() -> None:
    assert percentiles([]) is None


@given(st.lists(st.lists(st.floats(0.001, 10), min_size=1, max_size=20), min_size=1, max_size=20))
def test_every_gap_and_every_first_token_counts_once(streams: list[list[float]]) -> None:
    answers = [answer(*sorted(times), tokens=2 * len(times)) for times in streams]
    found = figures(answers, 10.0, KEEPS_UP)
    firsts = percentiles(min(times) for times in streams)
    gaps = [b - a for t in map(sorted, streams) for a, b in itertools.pairwise(t)]
    assert found.ttft_s == firsts
    assert found.itl_s == percentiles(gaps)
    assert found.e2e_s == percentiles(max(times) for times in streams)
    assert found.tokens_per_second == sum(2 * len(times) for times in streams) / 10.0
    assert found.requests_per_second == len(streams) / 10.0


def test_tokens_are_not_known_where_one_answer_has_no_usage() -> None:
    found = figures([answer(1, 2, tokens=2), answer(1, 2, 3)], 2.0, KEEPS_UP)
    assert found.tokens_per_second is None
    assert (found.num_without_usage, found.events_per_second) == (1, 2.5)


def test_failures_are_counted_by_kind_and_are_in_no_percentile() -> None:
    answers = [answer(1, tokens=1), failed(TIMEOUT), failed("HTTP 429"), failed("HTTP 429")]
    found = figures([*answers, failed(UNFINISHED)], 1.0, KEEPS_UP)
    assert found.errors == {"HTTP 429": 2, TIMEOUT: 1}
    assert found.messages["HTTP 429"] == "HTTP 429, in words"
    assert (found.num_requests, found.num_finished, found.num_unfinished) == (5, 1, 1)
    assert found.ttft_s is not None
    assert found.ttft_s.count == 1


def test_goodput_counts_what_keeps_to_every_limit() -> None:
    limits = {"ttft": 1.0, "itl": 0.5}
    good, late, slow = answer(1, 1.5), answer(1.1, 1.2), answer(1, 2)
    given_up = failed(UNFINISHED)
    found = figures([good, late, slow, failed(TIMEOUT), given_up], 2.0, KEEPS_UP, limits_s=limits)
    assert found.goodput is not None
    assert (found.goodput.good, found.goodput.share) == (1, 0.25)
    assert found.goodput.requests_per_second == 0.5


def test_an_answer_without_text_is_as_late_as_its_end() -> None:
    empty = MeasuredAnswer(0.0, 0.0)
    empty.ended = 3.0
    assert not is_good(empty, {"ttft": 2.0})
    assert is_good(empty, {"ttft": 3.0, "itl": 0.1})


def test_a_client_that_kept_up_says_nothing() -> None:
    found = client_figures([answer(1)], [0.001] * 100, 0.5, 0.6, is_open=True)
    assert not found.was_bottleneck
    assert found.reasons == []


@pytest.mark.parametrize(
    ("lags", "cpu", "peak_cpu", "began", "said"),
    [
        ([0.001], 0.95, 0.99, 0.0, "95% of a core"),
        ([0.001], 0.5, 0.99, 0.0, "for a second"),
        ([0.03], 0.5, 0.6, 0.0, "loop ran 30 ms late"),
        ([0.001], 0.5, 0.6, 0.03, "began 30 ms late"),
    ],
)
def test_a_client_that_was_the_bottleneck_says_why(
    lags: list[float], cpu: float, peak_cpu: float, began: float, said: str
) -> None:
    found = client_figures([MeasuredAnswer(0.0, began)], lags, cpu, peak_cpu, is_open=True)
    assert found.was_bottleneck
    assert said in found.reasons[0]


def test_in_a_closed_loop_nothing_is_late() -> None:
    found = client_figures([MeasuredAnswer(0.0, 5.0)], [0.001], 0.1, 0.1, is_open=False)
    assert found.late_s is None
    assert not found.was_bottleneck
