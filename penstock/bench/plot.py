"""Plots a run as PNG, SVG or an HTML page that also has the figures.

It needs matplotlib, which the extra `plot` installs. The page is one file that contains the picture
and loads nothing from other hosts.
"""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.bench.answer import UNFINISHED, MeasuredAnswer
from penstock.bench.report import COLUMNS, LATENCIES, milliseconds
from penstock.bench.run import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".png", ".svg")
MISSING = "a plot needs matplotlib: pip install 'penstock-server[plot]'"
GOOD, BAD = "#1f6feb", "#d1242f"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1f2328; background: #fff }
h1 { font-size: 1.4rem } svg { width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
.warning { color: #d1242f; font-weight: 600 }
"""


def check(path: Path) -> None:
    """Check before a run that its plot can be written to `path`. Raises ValueError if not."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the name of a plot must end in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401 - tests only that it is installed
    except ImportError:
        raise ValueError(MISSING) from None


def draw(result: Result, answers: Sequence[MeasuredAnswer], began: float) -> "Figure":
    """Draw the distributions of TTFT and ITL, and the course of the run.

    `began`: the clock's time, in seconds, at which the run started.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(f"{result.model}, {result.api}: {result.load.describe()}")
    axes = figure.subplots(2, 2)
    finished = [answer for answer in answers if answer.has_finished]
    first = [1000 * answer.ttft_s for answer in finished if answer.ttft_s is not None]
    _distribution(axes[0][0], "time to first token, ms", first)
    gaps = [1000 * gap for answer in finished for gap in answer.gaps_s]
    _distribution(axes[0][1], "between tokens, ms", gaps)
    _over_time(axes[1][0], answers, began)
    _in_flight(axes[1][1], answers, began, began + result.figures.seconds)
    return figure


def _distribution(axes: "Axes", title: str, values: list[float]) -> None:
    """Draw the cumulative distribution of some values."""
    axes.set(title=title, ylabel="% of values at or below", ylim=(0, 100))
    axes.grid(alpha=0.3)
    if not values:
        return
    axes.ecdf(values, color=GOOD)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
    axes.set_ylim(0, 1.01)
    ordered = sorted(values)
    if ordered[0] > 0 and ordered[-1] > 20 * ordered[len(ordered) // 2]:
        axes.set_xscale("log")


def _over_time(axes: "Axes", answers: Sequence[MeasuredAnswer], began: float) -> None:
    """Draw the TTFT of each request at its due time, with failed requests at the bottom."""
    axes.set(title="time to first token, by due time", xlabel="s", ylabel="ms")
    axes.grid(alpha=0.3)
    good = [(a.intended - began, a.ttft_s) for a in answers if a.has_finished]
    bad = [a.intended - began for a in answers if a.failure not in (None, UNFINISHED)]
    points = [(at, 1000 * ttft) for at, ttft in good if ttft is not None]
    axes.scatter([at for at, _ in points], [ms for _, ms in points], s=8, color=GOOD)
    if bad:
        axes.scatter(bad, [0.0] * len(bad), marker="x", color=BAD, label="failed")
        axes.legend()
    axes.set_ylim(bottom=0)


def _in_flight(axes: "Axes", answers: Sequence[MeasuredAnswer], began: float, ended: float) -> None:
    """Draw how many requests were in flight, counting only finished answers."""
    axes.set(title="requests in flight", xlabel="s")
    axes.grid(alpha=0.3)
    changes = sorted(
        [(answer.intended - began, 1) for answer in answers if answer.ended is not None]
        + [(answer.ended - began, -1) for answer in answers if answer.ended is not None]
    )
    times, numbers, number = [0.0], [0], 0
    for at, change in changes:
        number += change
        times.append(at)
        numbers.append(number)
    axes.step([*times, ended - began], [*numbers, number], where="post", color=GOOD)
    axes.set_ylim(bottom=0)


def save(figure: "Figure", path: Path, title: str, body: str = "") -> None:
    """Write a figure in the format of the path's suffix.

    An HTML page has the `title` and the HTML `body` above the figure.
    """
    if path.suffix != ".html":
        figure.savefig(path, dpi=144)
        return
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration, which HTML does not allow
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    page = f"<!doctype html><html lang=en>{head}<h1>{html.escape(title)}</h1>{body}{svg}</html>"
    path.write_text(page, encoding="utf-8")


def page_body(result: Result) -> str:
    """Return the figures of a run as HTML."""
    found = result.figures
    lines = [
        f"{result.load.describe()}; {result.prompts}; max_tokens {result.max_tokens}",
        f"{found.num_finished:,} of {found.num_requests:,} answers finished in"
        f" {found.seconds:,.2f} s: {found.requests_per_second:,.2f} requests/s, "
        + (
            f"{found.events_per_second:,.1f} events/s (tokens unknown: no usage)"
            if found.tokens_per_second is None
            else f"{found.tokens_per_second:,.1f} tokens/s"
        ),
        *(f"{count:,} failed: {kind}" for kind, count in found.errors.items()),
        f"{result.date}, {result.machine}, client {found.client.cpu:.0%} of a core",
    ]
    parts = [f"<p>{html.escape(line)}</p>" for line in lines]
    if found.client.was_bottleneck:
        reasons = html.escape("; ".join(found.client.reasons))
        parts.append(f"<p class=warning>The client was the bottleneck: {reasons}.</p>")
    parts.append("<table><tr><th>milliseconds" + "".join(f"<th>{each}" for each in COLUMNS))
    for name, label in LATENCIES:
        if values := getattr(found, name):
            cells = "".join(f"<td>{milliseconds(getattr(values, each))}" for each in COLUMNS)
            parts.append(f"<tr><td>{label}{cells}")
    parts.append("</table>")
    return "".join(parts)
