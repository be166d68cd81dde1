"""A real Prometheus checks the dashboard, the alerts and the scrape configuration."""

import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.observe.metrics import METRICS
from tests.support.keyed import Keys
from tests.support.prometheus import DEPLOY, Prometheus, scraping
from tests.support.raw import ask, open_stream, request
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve

ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "penstock.json"
RUNBOOK = DEPLOY.parent / "docs" / "runbook.md"
NAME = re.compile(r"\bpenstock_[a-z0-9_]+")

NUM_STREAMS, NUM_TOKENS = 12, 40


def exported_names() -> set[str]:
    """Return every metric name that a query may use."""
    names = set()
    for metric in METRICS:
        endings = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        names |= {metric.name + ending for ending in endings}
    return names


def dashboard_queries() -> list[str]:
    """Return the queries of the dashboard with Grafana's variables replaced."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [
        target["expr"].replace("$__rate_interval", "30s").replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_only_metrics_that_exist_are_asked_for(path: Path) -> None:
    queries = dashboard_queries() if path == DASHBOARD else [path.read_text(encoding="utf-8")]
    used = {name for query in queries for name in NAME.findall(query)}
    assert len(used) > 5
    assert used <= exported_names()


def test_the_dashboard_shows_every_metric() -> None:
    shown = set(NAME.findall(" ".join(dashboard_queries())))
    missing = {
        metric.name
        for metric in METRICS
        if (f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name) not in shown
    }
    assert missing <= {"penstock_build_info"}  # it only lists the instances


def test_the_dashboard_is_what_its_source_makes() -> None:
    make = runpy.run_path(str(DEPLOY / "grafana" / "make.py"))
    assert DASHBOARD.read_text(encoding="utf-8") == make["text"]()


def test_every_alert_leads_to_its_section_of_the_runbook() -> None:
    rules = ALERTS.read_text(encoding="utf-8").split("- alert: ")[1:]
    sections = RUNBOOK.read_text(encoding="utf-8").partition("\n## When an alert fires\n")[2]
    described = re.findall(r"^### (\w+)\n\n\w", sections, re.MULTILINE)
    assert len(rules) >= 5
    assert described == [rule.split()[0] for rule in rules]
    for name, rule in zip(described, rules, strict=True):
        (link,) = re.findall(r"runbook_url: \S+/docs/runbook\.md#(\w+)\n", rule)
        assert link == name.lower()


def test_promtool_accepts_the_rules_and_the_configuration(promtool: str) -> None:
    for arguments in (["rules", ALERTS], ["config", DEPLOY / "prometheus" / "prometheus.yml"]):
        subprocess.run([promtool, "check", *map(str, arguments)], check=True, capture_output=True)


def test_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    subprocess.run(
        [promtool, "test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.toml", "admin")


@pytest.fixture(scope="module")
def server(keys: Keys) -> Iterator[RunningServer]:
    options = ["length=1000", "slots=4"]
    with serve(engine="mock", mock_interval=0.02, engine_arg=options, keys=keys.path) as server:
        yield server


@pytest.fixture(scope="module")
def loaded(
    server: RunningServer,
    keys: Keys,
    prometheus: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """Run a Prometheus that has scraped the server before, during and after some streams."""
    folder = tmp_path_factory.mktemp("prometheus")
    with scraping(prometheus, server.port, keys.keys["admin"], folder) as running:
        running.wait_for("a scrape", lambda: ("up", 1.0) in values(running, "up"))
        held = [
            open_stream(server.port, keys.generate("admin", max_tokens=NUM_TOKENS))
            for _ in range(NUM_STREAMS)
        ]
        ask(server.port, keys.generate("admin", max_tokens=0))
        for connection, _ in held:
            assert list(connection.events())[-1]["finish_reason"] == "length"
            connection.close()
        whole = f"penstock_streams_ended_total == {NUM_STREAMS}"
        running.wait_for("the last end", lambda: bool(running.query(whole)))
        yield running


def values(prometheus: Prometheus, expression: str) -> set[tuple[str, float]]:
    return {(labels["__name__"], value) for labels, value in prometheus.query(expression)}


def test_prometheus_has_what_the_server_counted(loaded: Prometheus) -> None:
    def one(expression: str) -> float:
        ((_, value),) = loaded.answer(expression)
        return value

    assert one("sum(penstock_completion_tokens_total)") == NUM_STREAMS * NUM_TOKENS
    assert one("sum(penstock_streams_started_total)") == NUM_STREAMS
    assert one('penstock_streams_ended_total{cause="length"}') == NUM_STREAMS
    assert one('penstock_refusals_total{reason="out_of_range"}') == 1
    # With twelve streams on four slots, the last four wait for two rounds.
    late = "histogram_quantile(0.95, sum by (le) (penstock_time_to_first_token_seconds_bucket))"
    assert 2 * NUM_TOKENS * 0.02 * 0.5 < one(late) < 30
    gap = "histogram_quantile(0.5, sum by (le) (penstock_inter_token_latency_seconds_bucket))"
    assert 0.015 < one(gap) < 1
    assert one("penstock_engine_inter_token_latency_seconds_count") == NUM_STREAMS * (
        NUM_TOKENS - 1
    )


def test_prometheus_found_nothing_wrong_with_target_and_rules(loaded: Prometheus) -> None:
    def health() -> tuple[str, str]:
        (target,) = loaded.get("targets")["activeTargets"]
        return target["health"], target["lastError"]

    loaded.wait_for("the target is up", lambda: health() == ("up", ""))
    loaded.wait_for("the rules", lambda: all(rule["health"] == "ok" for rule in rules(loaded)))
    assert [rule["name"] for rule in rules(loaded) if rule["state"] == "firing"] == []


def rules(prometheus: Prometheus) -> list[dict[str, str]]:
    (group,) = prometheus.get("rules")["groups"]
    found: list[dict[str, str]] = group["rules"]
    return found


def asks_of_upstreams(query: str) -> bool:
    return "penstock_upstream_" in query


@pytest.mark.parametrize("query", [q for q in dashboard_queries() if not asks_of_upstreams(q)])
def test_each_query_of_the_dashboard_has_an_answer(loaded: Prometheus, query: str) -> None:
    if "resumes_total" in query:
        assert loaded.query(query) == []  # no stream was resumed
    else:
        assert loaded.answer(query)


def test_each_query_of_the_dashboard_has_an_answer_for_every_upstream(
    keys: Keys, prometheus: str, promtool: str, tmp_path: Path
) -> None:
    queries = list(filter(asks_of_upstreams, dashboard_queries()))
    assert len(queries) == 6
    with (
        serve(engine="mock") as one,
        serve(engine="mock") as two,
        serve(upstream=[one.url, two.url], keys=keys.path) as front,
        scraping(prometheus, front.port, keys.keys["admin"], tmp_path) as running,
    ):
        ask(front.port, keys.generate("admin", max_tokens=5))
        for query in queries:
            running.wait_for(query, lambda query=query: len(running.query(query)) >= 2)  # type: ignore[misc]
        metrics = Scrape(front, keys.header("admin")).text
    subprocess.run(
        [promtool, "check", "metrics"], input=metrics, text=True, check=True, capture_output=True
    )


def test_promtool_finds_nothing_to_complain_of(keys: Keys, promtool: str) -> None:
    # A server of its own: the other tests know how many streams theirs has had.
    with serve(engine="mock", keys=keys.path) as server:
        ask(server.port, keys.generate("admin", max_tokens=5))
        ask(server.port, request("GET", "/nope", keys.header("admin")))
        text = Scrape(server, keys.header("admin")).text
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
