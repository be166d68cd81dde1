"""The terminal output of a run: a progress bar, then a report of the figures."""

import contextlib
from collections.abc import Iterator

import msgspec
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from penstock.bench.figures import Figures, Percentiles
from penstock.bench.load import Run
from penstock.bench.plan import Load
from penstock.bench.run import OnProgress, Result

COLUMNS = ("p50", "p90", "p95", "p99", "max")
LATENCIES = (
    ("ttft_s", "time to first token (TTFT)"),
    ("itl_s", "between tokens (ITL)"),
    ("tpot_s", "per output token (TPOT)"),
    ("e2e_s", "whole answer"),
)


@contextlib.contextmanager
def display(load: Load, console: Console) -> Iterator[OnProgress]:
    """Show a progress bar if `console` is a terminal. Yields the function that updates it."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # a refresh thread would compete with the measurement for the GIL
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=None, figures="")

        def update(doing: str, run: Run | None) -> None:
            if progress.disable:
                return
            if run is None:
                progress.update(task, description=doing)
            else:
                num_failed = sum(answer.failure is not None for answer in run.answers)
                failed = f", [red]{num_failed:,} failed[/red]" if num_failed else ""
                progress.update(
                    task,
                    description=f"{len(run.in_flight):,} running",
                    total=load.num_requests,
                    completed=len(run.answers),
                    figures=f"{len(run.answers):,} ended{failed}",
                )
            progress.refresh()

        yield update


def report(result: Result) -> RenderableType:
    """Return the report of a run, for a terminal."""
    found = result.figures
    parts: list[RenderableType] = [
        f"[bold]{escape(clean(result.model))}[/bold] at {escape(result.url)} ({result.api})",
        f"{result.load.describe()}; {result.prompts}; max_tokens {result.max_tokens}",
        "",
        latencies(found),
        "",
        counts(found),
    ]
    if result.was_interrupted:
        parts.insert(2, "[yellow]Stopped early: these are the results so far.[/yellow]")
    if found.client.was_bottleneck:
        reasons = "; ".join(found.client.reasons)
        parts += [
            "",
            f"[bold red]The client was the bottleneck:[/bold red] {reasons}. The figures include"
            " its own delays. Reduce the load, run the client on another machine than the server,"
            " or run several clients.",
        ]
    return Group(*(Text.from_markup(each) if isinstance(each, str) else each for each in parts))


def latencies(found: Figures) -> Table:
    """Return the table of percentiles, in milliseconds."""
    table = Table("milliseconds", box=None, pad_edge=False, header_style="dim")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, label in LATENCIES:
        _add(table, label, getattr(found, name))
    if found.client.late_s is not None:
        _add(table, "[dim]sent late by the client[/dim]", found.client.late_s)
    return table


def _add(table: Table, label: str, values: Percentiles | None) -> None:
    if values is None:
        table.add_row(label, *("-" for _ in COLUMNS))
    else:
        table.add_row(label, *(milliseconds(getattr(values, name)) for name in COLUMNS))


def counts(found: Figures) -> Table:
    """Return the table of counts, rates and failures."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    finished = f"{found.num_finished:,} of {found.num_requests:,} in {found.seconds:,.2f} s"
    if found.num_unfinished:
        finished += f" ({found.num_unfinished:,} abandoned when the run was stopped)"
    table.add_row("finished", finished)
    table.add_row("requests/s", f"{found.requests_per_second:,.2f}")
    if found.tokens_per_second is not None and found.completion_tokens and found.prompt_tokens:
        table.add_row("tokens/s", f"{found.tokens_per_second:,.1f} (the server's usage)")
        table.add_row(
            "tokens per answer",
            f"{found.completion_tokens.mean:,.1f} on average, after a prompt of"
            f" {found.prompt_tokens.mean:,.1f}",
        )
    else:
        table.add_row("events/s", f"{found.events_per_second:,.1f}")
        if found.num_finished:
            table.add_row(
                "tokens/s",
                f"unknown: {found.num_without_usage:,} of {found.num_finished:,} answers came"
                " without usage, and an event can contain several tokens",
            )
    if found.num_without_text:
        table.add_row("without text", f"{found.num_without_text:,} (they have no TTFT)")
    table.add_row("max in flight", f"{found.max_in_flight:,}")
    if found.goodput is not None:
        limits = ", ".join(f"{k} {1000 * v:g} ms" for k, v in found.goodput.limits_s.items())
        table.add_row(
            "goodput",
            f"{found.goodput.requests_per_second:,.2f} requests/s, {found.goodput.share:.1%}"
            f" within {limits}",
        )
    for kind, count in found.errors.items():
        said = clean(found.messages.get(kind, ""))
        table.add_row("[red]failed[/red]", f"{count:,} {kind}  [dim]{escape(said)}[/dim]")
    lag = found.client.loop_lag_s
    late = "" if lag is None else f", event loop {milliseconds(lag.p99)} ms late (p99)"
    table.add_row("client", f"{found.client.cpu:.0%} of a core{late}")
    return table


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, rounded to three significant digits below 100 ms."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def clean(text: str) -> str:
    """Replace the unprintable characters of a server's text, which could control the terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def to_json(result: Result) -> bytes:
    """Return a result as the content of a JSON file."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"
