"""Metrics of several processes together: sums, greatest values, and counters that never go back."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from penstock.observe.metrics import RESTARTS
from penstock.processes.messages import Family
from penstock.processes.totals import Collected, Totals, families_of

COUNTER = "penstock_sends"


def families(sends: float = 0, running: float = 0, lag: float = 0, up: float = 1) -> list[Family]:
    counted = [
        (f"{COUNTER}_total", {}, sends),
        (f"{COUNTER}_total", {"key": "ada"}, 2 * sends),
    ]
    return [
        Family(COUNTER, "counter", "", counted),
        Family(
            "penstock_streams_running", "gauge", "", [("penstock_streams_running", {}, running)]
        ),
        Family(
            "penstock_reader_lag_max_events",
            "gauge",
            "",
            [("penstock_reader_lag_max_events", {}, lag)],
        ),
        Family("penstock_engine_up", "gauge", "", [("penstock_engine_up", {}, up)]),
        Family("process_open_fds", "gauge", "", [("process_open_fds", {}, 7)]),
        Family(RESTARTS.removesuffix("_total"), "counter", "", [(RESTARTS, {}, 0.0)]),
    ]


def values(found: list[Family]) -> dict[str, float]:
    """Return the values as Prometheus reads them, by name and labels."""
    text = generate_latest(Collected(found)).decode()
    return {
        sample.name
        + "".join(f" {key}={value}" for key, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_kind_of_number_is_combined_as_it_must_be() -> None:
    live = {1: families(3, 5, 40, 1), 2: families(4, 6, 30, 0)}
    assert values(Totals().with_live(live)) == {
        "penstock_sends_total": 7,
        "penstock_sends_total key=ada": 14,
        "penstock_streams_running": 11,
        "penstock_reader_lag_max_events": 40,
        "penstock_engine_up process=1": 1,
        "penstock_engine_up process=2": 0,
        "process_open_fds process=1": 7,
        "process_open_fds process=2": 7,
        RESTARTS: 0,
    }


def test_an_ended_process_leaves_its_counts_and_no_levels() -> None:
    totals = Totals()
    totals.retire(families(3, 5, 40))
    found = values(totals.with_live({1: [], 2: families(4, 6, 30)}))
    assert found["penstock_sends_total"] == 7
    assert found["penstock_streams_running"] == 6
    assert found[RESTARTS] == 1
    assert "penstock_engine_up process=1" not in found


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.one_of(st.none(), st.integers(0, 9)))))
def test_no_counter_ever_goes_back(steps: list[tuple[int, int | None]]) -> None:
    """In each step a process counts on and is scraped, or (None) ends and begins at zero."""
    totals, counts, last = Totals(), {1: 0, 2: 0}, 0.0
    for number, grown in steps:
        if grown is None:
            totals.retire(families(counts[number]))
            counts[number] = 0
        else:
            counts[number] += grown
        found = values(totals.with_live({each: families(counts[each]) for each in counts}))
        assert found["penstock_sends_total"] >= last
        last = found["penstock_sends_total"]


def test_what_prometheus_client_collects_comes_through_unchanged() -> None:
    registry = CollectorRegistry()
    from prometheus_client import Counter, Histogram

    Counter("asked", "Questions.", ["who"], registry=registry).labels("ada").inc(3)
    Histogram("took", "Seconds.", registry=registry).observe(0.2)
    sent = Totals().with_live({1: families_of(registry.collect())})
    assert generate_latest(Collected(sent)) == generate_latest(registry)
