"""Generates Grafana's dashboard penstock.json from the table of panels in this file.

    python deploy/grafana/make.py          writes deploy/grafana/penstock.json

Grafana's format takes a hundred lines for each panel, this table takes about five. To change the
dashboard, change this file and run it. A test checks that penstock.json is up to date.
"""

import json
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 8, 7
PANELS_IN_ROW = 3
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WHERE = 'instance=~"$instance"'
RATE = "[$__rate_interval]"


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Return the query for a counter's growth per second."""
    selector = ", ".join(filter(None, (WHERE, where)))
    grouped = f" by ({by}) " if by else ""
    return f"sum{grouped}(rate({metric}{{{selector}}}{RATE}))"


def quantile(share: float, metric: str) -> str:
    """Return the query for a quantile of a histogram: `share` of its values are smaller."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{WHERE}}}{RATE}))"
    return f"histogram_quantile({share}, {buckets})"


def level(metric: str) -> str:
    """Return the query for a gauge, summed over the instances."""
    return f"sum({metric}{{{WHERE}}})"


def two_sides(metric: str) -> dict[str, str]:
    """Return legends and queries for a latency, measured at the socket and at the engine."""
    engine = metric.replace("penstock_", "penstock_engine_")
    return {
        "client p50": quantile(0.5, metric),
        "client p95": quantile(0.95, metric),
        "client p99": quantile(0.99, metric),
        "engine p50": quantile(0.5, engine),
        "engine p95": quantile(0.95, engine),
    }


def p50_and_p99(metric: str) -> dict[str, str]:
    """Return legends and queries for the p50 and the p99 of a histogram."""
    return {"p50": quantile(0.5, metric), "p99": quantile(0.99, metric)}


# row → panels: (title, unit, legend → query)
ROWS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Latency for clients": [
        ("Time to first token", "s", two_sides("penstock_time_to_first_token_seconds")),
        ("Inter-token latency", "s", two_sides("penstock_inter_token_latency_seconds")),
        ("End-to-end latency", "s", two_sides("penstock_e2e_latency_seconds")),
    ],
    "Load": [
        (
            "Tokens per second",
            "short",
            {
                "generated": rate("penstock_completion_tokens_total"),
                "prompt": rate("penstock_prompt_tokens_total"),
            },
        ),
        (
            "Streams",
            "short",
            {
                "running": level("penstock_streams_running"),
                "waiting": level("penstock_streams_waiting"),
                "slots": level("penstock_engine_slots"),
                "ended, still readable": level("penstock_streams_kept"),
            },
        ),
        (
            "Requests per second",
            "reqps",
            {"{{route}} {{status}}": rate("penstock_http_requests_total", "route, status")},
        ),
    ],
    "Delays by cause": [
        ("Queue time", "s", p50_and_p99("penstock_queue_time_seconds")),
        ("Prefill time", "s", p50_and_p99("penstock_prefill_time_seconds")),
        ("Delivery: log to socket", "s", p50_and_p99("penstock_delivery_seconds")),
    ],
    "Stream endings": [
        (
            "Endings per second, by cause",
            "short",
            {
                "started": rate("penstock_streams_started_total"),
                "{{cause}} {{code}}": rate("penstock_streams_ended_total", "cause, code"),
            },
        ),
        (
            "Refusals per second, by reason",
            "short",
            {"{{reason}}": rate("penstock_refusals_total", "reason")},
        ),
        ("Abort time", "s", p50_and_p99("penstock_abort_seconds")),
    ],
    "Readers": [
        (
            "Readers",
            "short",
            {
                "connected": level("penstock_readers"),
                "blocked": level("penstock_readers_blocked"),
                "largest lag, in events": f"max(penstock_reader_lag_max_events{{{WHERE}}})",
                "lag of all, in events": level("penstock_reader_lag_events"),
            },
        ),
        (
            "Events per send",
            "short",
            {
                "events per send": rate("penstock_events_sent_total")
                + " / "
                + rate("penstock_sends_total")
            },
        ),
        (
            "Resumed and stalled, per second",
            "short",
            {
                "resumed, {{phase}}": rate("penstock_resumes_total", "phase"),
                "stalled": rate("penstock_readers_stalled_total"),
            },
        ),
    ],
    "API keys": [
        (
            "Requests per second, by key",
            "reqps",
            {
                "{{key}}": rate("penstock_key_requests_total", "key"),
                "{{key}}, refused": rate("penstock_key_refusals_total", "key"),
            },
        ),
        (
            "Generated tokens per second, by key",
            "short",
            {"{{key}}": rate("penstock_key_completion_tokens_total", "key")},
        ),
        (
            "Prompt tokens per second, by key",
            "short",
            {"{{key}}": rate("penstock_key_prompt_tokens_total", "key")},
        ),
    ],
    "Store of logs and replicas": [
        (
            "Streams",
            "short",
            {
                "servers whose store answers": level("penstock_store_up"),
                "stored": level("penstock_streams_stored"),
                "read at another replica": level("penstock_streams_followed"),
            },
        ),
        (
            "Takeovers per second",
            "short",
            {
                "taken over": rate("penstock_takeovers_total"),
                "lost to another replica": rate("penstock_logs_lost_total"),
            },
        ),
        ("Store: write to confirmation", "s", p50_and_p99("penstock_store_seconds")),
    ],
    "Upstreams": [
        (
            "Upstreams that are up",
            "short",
            {
                "{{upstream}} {{model}}": (
                    f"min by (upstream, model) (penstock_upstream_up{{{WHERE}}})"
                ),
            },
        ),
        (
            "Running requests of an upstream",
            "short",
            {"{{upstream}}": f"sum by (upstream) (penstock_upstream_running{{{WHERE}}})"},
        ),
        (
            "Requests of upstreams",
            "reqps",
            {
                "{{upstream}} {{outcome}}": rate(
                    "penstock_upstream_requests_total", "upstream, outcome"
                )
            },
        ),
    ],
    "Failures of upstreams": [
        (
            "Failures of upstreams",
            "ops",
            {"{{upstream}}": rate("penstock_upstream_failures_total", "upstream")},
        ),
        (
            "Answers that went on elsewhere",
            "ops",
            {
                "after a failure of {{upstream}}": rate(
                    "penstock_upstream_failovers_total", "upstream"
                )
            },
        ),
        (
            "Time to look at an upstream",
            "s",
            {"{{upstream}}": f"max by (upstream) (penstock_upstream_look_seconds{{{WHERE}}})"},
        ),
    ],
    "Server": [
        ("Event loop lag", "s", p50_and_p99("penstock_event_loop_lag_seconds")),
        (
            "Engine",
            "short",
            {
                "up": level("penstock_engine_up"),
                "share of the KV cache in use, at the fullest server": (
                    f"max(penstock_kv_cache_usage_ratio{{{WHERE}}})"
                ),
                "servers that drain": level("penstock_draining"),
                "restarts in the last hour": (
                    f"sum(increase(penstock_engine_restarts_total{{{WHERE}}}[1h]))"
                ),
                "restarts of server processes in the last hour": (
                    f"sum(increase(penstock_process_restarts_total{{{WHERE}}}[1h]))"
                ),
                "cancelled requests that it still works on": level("penstock_engine_stopping"),
                "failures of tasks in the last hour": (
                    f"sum(increase(penstock_task_failures_total{{{WHERE}}}[1h]))"
                ),
            },
        ),
        (
            "Memory",
            "bytes",
            {
                "server process": level("process_resident_memory_bytes"),
                "in use": level("penstock_memory_used_bytes"),
                "limit": level("penstock_memory_limit_bytes"),
                "held, {{kind}}": f"sum by (kind) (penstock_memory_held_bytes{{{WHERE}}})",
                "logs of ended streams": level("penstock_streams_kept_bytes"),
            },
        ),
    ],
}


def panel(number: int, title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    """Return a graph. `number` counts the graphs from 0 and sets the position."""
    row, column = divmod(number, PANELS_IN_ROW)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": DATASOURCE,
        "gridPos": {
            "h": HEIGHT,
            "w": WIDTH,
            "x": WIDTH * column,
            "y": (HEIGHT + 1) * row + 1,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(queries.items())
        ],
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's import format."""
    panels: list[dict[str, Any]] = []
    number = 0
    for index, (title, graphs) in enumerate(ROWS.items()):
        assert len(graphs) == PANELS_IN_ROW
        place = {"h": 1, "w": WIDTH * PANELS_IN_ROW, "x": 0, "y": (HEIGHT + 1) * index}
        panels.append({"id": 100 + index, "type": "row", "title": title, "gridPos": place})
        for each in graphs:
            panels.append(panel(number, *each))
            number += 1
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    instances = {
        "name": "instance",
        "type": "query",
        "datasource": DATASOURCE,
        "query": "label_values(penstock_build_info, instance)",
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
    return {
        "uid": "penstock",
        "title": "Penstock",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [variable, instances]},
        "panels": panels,
    }


def text() -> str:
    """Return the content of penstock.json."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("penstock.json").write_text(text(), encoding="utf-8")
