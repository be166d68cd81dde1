"""Bar charts of the benchmarks' figures, in the formats of `penstock bench --plot`."""

from pathlib import Path

from penstock.bench import plot

GROUP_WIDTH = 0.8


def check(path: Path) -> None:
    """Check before a benchmark that its plot can be written. Raises SystemExit if not."""
    try:
        plot.check(path)
    except ValueError as error:
        raise SystemExit(f"--plot: {error}") from None


def format_value(value: float) -> str:
    """Format a figure, with three significant digits below 1,000."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def bars(
    panels: dict[str, dict[str, dict[str, float]]], path: Path, title: str, caption: str
) -> None:
    """Save a chart with a panel for each unit, a colour for each series and a group for each load.

    `panels[unit][series][load]` is a figure, which is printed above its bar. `caption` is printed
    below the chart.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6 * len(panels)), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel(caption, fontsize=8)
    named: list[str] = []
    for axes, (unit, by_series) in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        loads = list(dict.fromkeys(load for series in by_series.values() for load in series))
        width = GROUP_WIDTH / len(by_series)
        for number, (name, figures) in enumerate(by_series.items()):
            offset = (number - (len(by_series) - 1) / 2) * width
            places = [loads.index(load) + offset for load in figures]
            drawn = axes.bar(places, list(figures.values()), width, label=name)
            axes.bar_label(drawn, fmt=format_value, fontsize=7)
        axes.set_xticks(range(len(loads)), loads)
        axes.set_ylabel(unit)
        if list(by_series) != named:  # the colours have the meaning of the panel above
            named = list(by_series)
            axes.legend(fontsize=8)
    plot.save(figure, path, title)
