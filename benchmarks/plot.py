"""Bars for the benchmarks' figures, in the forms that `penstock bench --plot` knows."""

from pathlib import Path

from penstock.bench import plot

GROUP_WIDTH = 0.8


def check(path: Path) -> None:
    """Before the benchmark: can this be drawn at its end?"""
    try:
        plot.check(path)
    except ValueError as error:
        raise SystemExit(f"--plot: {error}") from None


def shown(value: float) -> str:
    """A figure with the digits that mean something."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def bars(
    panels: dict[str, dict[str, dict[str, float]]], path: Path, title: str, caption: str
) -> None:
    """A panel for each unit; in it a colour for each series and a group for each load.

    `panels[unit][series][load]` is a figure, which stands above its bar.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6 * len(panels)), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel(caption, fontsize=8)
    for axes, (unit, by_series) in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        loads = list(dict.fromkeys(load for series in by_series.values() for load in series))
        width = GROUP_WIDTH / len(by_series)
        for number, (name, figures) in enumerate(by_series.items()):
            offset = (number - (len(by_series) - 1) / 2) * width
            places = [loads.index(load) + offset for load in figures]
            drawn = axes.bar(places, list(figures.values()), width, label=name)
            axes.bar_label(drawn, fmt=shown, fontsize=7)
        axes.set_xticks(range(len(loads)), loads)
        axes.set_ylabel(unit)
    figure.axes[0].legend(fontsize=8)
    plot.save(figure, path, title)
