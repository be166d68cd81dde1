"""The table of metrics: Prometheus' conventions, and the reference page with the table."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from penstock.observe.meter import KeyUsage, Meter
from penstock.observe.metrics import METRICS, Counter, Levels, Metrics
from tools.reference import metrics_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

LEVELS = Levels(
    version="1.0",
    engine="mock",
    model='rill"\n\\',
    running=1,
    waiting=2,
    prompt_tokens=3,
    completion_tokens=4,
    usage_by_key={"alice": KeyUsage(1, 2, 3, 4)},
    kept=5,
    kept_bytes=6,
    held_bytes={"running": 14, "kept": 15},
    used_bytes=16,
    memory_limit=17,
    readers=7,
    lag=8,
    greatest_lag=9,
    blocked=10,
    stalled=11,
    slots=12,
    cached_tokens=300,
    cache_tokens=1200,
    engine_up=True,
    engine_restarts=13,
    engine_stopping=14,
    task_failures={("liveness",): 15},
    draining=False,
    store_up=True,
    stored=0,
    followed=0,
    taken_over=0,
    logs_lost=0,
    upstreams_up={("http://gpu1:8000", "rill"): 1},
    upstream_requests={("http://gpu1:8000", "answered"): 18},
    by_upstream={
        name: {("http://gpu1:8000",): 19}
        for name in ("running", "failures", "failovers", "look_time")
    },
)


def test_names_follow_the_conventions_and_none_comes_twice() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"penstock_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
        assert metric.name.endswith("_total") == isinstance(metric, Counter)
        assert metric.name.endswith("_seconds") or metric.kind != "histogram"
        assert metric.help.endswith(".")


def test_no_label_can_hold_what_a_client_chose() -> None:
    labels = {label for metric in METRICS for label in metric.labels}
    # Our own code sets the first labels, the operator and the upstreams set the last five.
    assert labels == {
        *("cause", "code", "kind", "phase", "reason", "route", "method", "status", "outcome"),
        *("task", "version", "engine", "model", "key", "upstream"),
    }


def test_both_formats_say_the_same_and_can_be_parsed() -> None:
    meter = Meter()
    meter.stream_started()
    meter.stream_ended("length", "", 10, 20, 1.5)
    meter.engine_gap.add(0.02)
    registry = CollectorRegistry()
    registry.register(Metrics(meter, lambda: LEVELS))
    plain = {each.name: each for each in parse(generate_latest(registry).decode())}
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(encode(registry).decode())  # type: ignore[no-untyped-call] # theirs
    modern = {each.name: each for each in families}
    assert plain.keys() == modern.keys()
    assert {name.removesuffix("_total") for name in (each.name for each in METRICS)} == {*plain}
    ended = plain["penstock_streams_ended"].samples
    assert [(each.labels, each.value) for each in ended] == [({"cause": "length", "code": ""}, 1)]
    assert plain["penstock_completion_tokens"].samples[0].value == 24
    assert plain["penstock_build_info"].samples[0].labels["model"] == LEVELS.model
    assert plain["penstock_engine_inter_token_latency_seconds"].samples[-1].value == 0.02


def test_a_counter_never_goes_down_though_tokens_are_taken_back() -> None:
    levels = [LEVELS, replace(LEVELS, completion_tokens=2), replace(LEVELS, completion_tokens=9)]
    metrics = Metrics(Meter(), lambda: levels.pop(0))
    seen = []
    for _ in range(3):
        families = {family.name: family for family in metrics.collect()}
        seen.append(families["penstock_completion_tokens"].samples[0].value)
    assert seen == [4, 4, 9]


@pytest.mark.parametrize(
    ("used", "size", "shown"), [(300, 1200, [0.25]), (1300, 1200, [1.0]), (300, 0, [])]
)
def test_the_use_of_the_cache_is_a_share_and_missing_if_its_size_is_unknown(
    used: int, size: int, shown: list[float]
) -> None:
    levels = replace(LEVELS, cached_tokens=used, cache_tokens=size)
    families = {family.name: family for family in Metrics(Meter(), lambda: levels).collect()}
    samples = families["penstock_kv_cache_usage_ratio"].samples
    assert [sample.value for sample in samples] == shown


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_histograms_have_buckets_that_grow(metric: object) -> None:
    if getattr(metric, "kind", "") == "histogram":
        bounds = metric.read(Meter()).bounds  # type: ignore[attr-defined] # a histogram has it
        assert list(bounds) == sorted(set(bounds))


def test_the_page_shows_the_table_that_the_code_has() -> None:
    assert metrics_page() == PAGE.read_text(encoding="utf-8"), "run: python -m tools.reference"
