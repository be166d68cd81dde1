"""Makes penstock.json, Grafana's dashboard, from the panels named here.

    python deploy/grafana/make.py          writes deploy/grafana/penstock.json

Grafana's own form has a hundred lines for each panel; this has the five that matter. To change
the dashboard, change this file and run it: a test compares the two.
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
    """How much a counter grows in a second."""
    selector = ", ".join(filter(None, (WHERE, where)))
    grouped = f" by ({by}) " if by else ""
    return f"sum{grouped}(rate({metric}{{{selector}}}{RATE}))"


def quantile(share: float, metric: str) -> str:
    """Below what this share of a histogram's values is."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{WHERE}}}{RATE}))"
    return f"histogram_quantile({share}, {buckets})"


def level(metric: str) -> str:
    """A gauge, over all instances."""
    return f"sum({metric}{{{WHERE}}})"


def two_sides(metric: str) -> dict[str, str]:
    """The same time at the socket and at the engine."""
    engine = metric.replace("penstock_", "penstock_engine_")
    return {
        "client, half": quantile(0.5, metric),
        "client, 1 in 20": quantile(0.95, metric),
        "client, 1 in 100": quantile(0.99, metric),
        "engine, half": quantile(0.5, engine),
        "engine, 1 in 20": quantile(0.95, engine),
    }


def half_and_worst(metric: str) -> dict[str, str]:
    """A time of the server's own."""
    return {"half": quantile(0.5, metric), "1 in 100": quantile(0.99, metric)}


# row → panels: (title, unit, legend → query)
ROWS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "What clients feel": [
        ("Time to the first token", "s", two_sides("penstock_time_to_first_token_seconds")),
        ("Between two tokens", "s", two_sides("penstock_inter_token_latency_seconds")),
        ("A whole answer", "s", two_sides("penstock_e2e_latency_seconds")),
    ],
    "Load": [
        (
            "Tokens a second",
            "short",
            {
                "generated": rate("penstock_completion_tokens_total"),
                "read (prompts)": rate("penstock_prompt_tokens_total"),
            },
        ),
        (
            "Streams",
            "short",
            {
                "running": level("penstock_streams_running"),
                "waiting": level("penstock_streams_waiting"),
                "slots": level("penstock_engine_slots"),
                "kept after their end": level("penstock_streams_kept"),
            },
        ),
        (
            "Requests a second",
            "reqps",
            {"{{route}} {{status}}": rate("penstock_http_requests_total", "route, status")},
        ),
    ],
    "Where the time goes": [
        ("Waiting for a slot", "s", half_and_worst("penstock_queue_time_seconds")),
        ("Reading the prompt", "s", half_and_worst("penstock_prefill_time_seconds")),
        ("The server: log to socket", "s", half_and_worst("penstock_delivery_seconds")),
    ],
    "How streams end": [
        (
            "Ends a second, by cause",
            "short",
            {"{{cause}} {{code}}": rate("penstock_streams_ended_total", "cause, code")},
        ),
        (
            "Refusals a second, by reason",
            "short",
            {"{{reason}}": rate("penstock_refusals_total", "reason")},
        ),
        ("Until the engine has stopped", "s", half_and_worst("penstock_abort_seconds")),
    ],
    "Readers": [
        (
            "Readers",
            "short",
            {
                "connected": level("penstock_readers"),
                "blocked": level("penstock_readers_blocked"),
                "events behind, the furthest": f"max(penstock_reader_lag_max_events{{{WHERE}}})",
            },
        ),
        (
            "Events in one send",
            "short",
            {
                "events by sends": rate("penstock_events_sent_total")
                + " / "
                + rate("penstock_sends_total")
            },
        ),
        (
            "Resumed and stalled, a second",
            "short",
            {
                "resumed, {{phase}}": rate("penstock_resumes_total", "phase"),
                "stalled": rate("penstock_readers_stalled_total"),
            },
        ),
    ],
    "The server": [
        ("Event loop lag", "s", half_and_worst("penstock_event_loop_lag_seconds")),
        (
            "Engine",
            "short",
            {
                "up": level("penstock_engine_up"),
                "restarts in an hour": (
                    f"sum(increase(penstock_engine_restarts_total{{{WHERE}}}[1h]))"
                ),
            },
        ),
        (
            "Memory",
            "bytes",
            {
                "the server's process": level("process_resident_memory_bytes"),
                "logs of ended streams": level("penstock_streams_kept_bytes"),
            },
        ),
    ],
}


def panel(number: int, title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    """One graph. `number` counts them from 0 and gives its place."""
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
    """The dashboard, as Grafana imports it."""
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
    """The file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("penstock.json").write_text(text(), encoding="utf-8")
