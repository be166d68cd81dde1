"""The table in docs/metrics.md, made from the code: `python -m tests.observe.table`."""

from penstock.observe.metrics import METRICS


def table() -> str:
    """One row for each metric."""
    rows = ["| metric | kind | labels | what it answers |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.answers} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
