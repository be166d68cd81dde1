"""Tallies, the measurement of sends, and the bound on label values."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.events import Usage
from penstock.observe.meter import GAP_S, MAX_LABEL_VALUES, OTHER, Delivery, Meter, Tally

values = st.floats(0, 100)


@given(st.lists(values))
def test_a_tally_counts_each_value_once_at_the_first_bound_that_holds_it(
    given: list[float],
) -> None:
    tally = Tally(GAP_S)
    for value in given:
        tally.add(value)
    bounds = (*GAP_S, float("inf"))
    for index, bound in enumerate(bounds):
        assert sum(tally.counts[: index + 1]) == sum(value <= bound for value in given)
    assert tally.count == len(given)
    assert tally.sum == pytest.approx(sum(given))  # from Python 3.12 on, `sum` rounds once
    assert len(tally.counts) == len(bounds) == bisect_left(GAP_S, 1e9) + 1


def test_the_first_send_with_a_delta_is_the_time_to_the_first_token_and_no_gap() -> None:
    meter = Meter()
    delivery = Delivery(meter, began=100.0)
    delivery.taken(1, False, logged_at=100.5, now=100.75)
    assert (meter.first_token.count, meter.first_token.sum) == (1, 0.75)
    assert (meter.delivery.count, meter.delivery.sum) == (1, 0.25)
    assert meter.gap.count == 0


def test_a_send_of_many_deltas_is_one_gap_and_the_terminal_event_alone_is_none() -> None:
    meter = Meter()
    delivery = Delivery(meter, began=100.0)
    delivery.taken(1, False, 101.0, now=101.0)
    delivery.taken(7, False, 101.5, now=103.0)
    delivery.taken(1, True, 104.0, now=104.0)
    assert (meter.gap.count, meter.gap.sum) == (1, 2.0)
    assert (meter.delivery.count, meter.delivery.sum) == (3, 1.5)
    assert (meter.num_sends, meter.num_events_sent) == (3, 9)


def test_what_is_replayed_to_a_later_reader_is_sent_but_says_nothing_of_time() -> None:
    meter = Meter()
    delivery = Delivery(meter, began=0.0)
    delivery.taken(256, False, 0.0, now=500.0)
    delivery.taken(1, False, 500.5, now=501.0)
    assert (meter.num_sends, meter.num_events_sent) == (2, 257)
    assert (meter.gap.count, meter.first_token.count) == (0, 0)
    assert meter.delivery.sum == 0.5


def test_a_label_has_a_bounded_number_of_values() -> None:
    meter = Meter()
    for number in range(1000):
        meter.refused(f"code_{number}")
        meter.stream_ended("error", f"code_{number}", 1, 1, 1.0)
    for counts in (meter.num_refused, meter.num_ended):
        assert len(counts) == MAX_LABEL_VALUES + 1
        assert sum(counts.values()) == 1000
    assert meter.num_ended["error", "other"] == 1000 - MAX_LABEL_VALUES


def test_the_usage_of_keys_is_bounded_and_names_beyond_are_other() -> None:
    meter = Meter()
    for number in range(MAX_LABEL_VALUES + 10):
        meter.usage_of(f"key{number}").num_requests += 1
    assert len(meter.usage_by_key) == MAX_LABEL_VALUES + 1
    assert meter.usage_by_key[OTHER].num_requests == 10
    meter.usage_of("key0").add(Usage(3, 4))
    now = meter.usage_now([("key0", Usage(10, 20)), ("late", Usage(1, 2))])
    assert (now["key0"].prompt_tokens, now["key0"].completion_tokens) == (13, 24)
    assert (now[OTHER].prompt_tokens, now[OTHER].completion_tokens) == (1, 2)
    assert meter.usage_by_key["key0"].prompt_tokens == 3
