"""The ratios that Penstock is built for: its figures ÷ another server's, of the same run.

Only ratios within one run mean something; see `benchmarks.noise`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import embedded
from benchmarks.peers.servers import COMPLETIONS, FLOOR, NATIVE, VLLM_RS
from benchmarks.report import Figures, Numbers

ONE_TOKEN = "a request for one token"
SILENT = "silent streams"
EMBEDDED = "the built-in model, "

Results = dict[str, dict[str, Numbers]]
"""Figures by load and server."""


def streams(count: int) -> str:
    """Return the name of a load in lockstep."""
    return f"{count:,} stream{'s' if count > 1 else ''}"


def embedded_streams(count: int) -> str:
    """Return the name of a load on the embedded engine."""
    return EMBEDDED + streams(count)


@dataclass(frozen=True)
class Goal:
    """A ratio and the bound that it should keep: `at_least`, else at most."""

    title: str
    load: str
    figure: str
    ours: str
    theirs: str
    bound: float
    at_least: bool = False

    def ratios(self, repeats: Sequence[Results]) -> list[float]:
        """Return the ratio of each repeat that has both figures."""
        found = []
        for results in repeats:
            by_server = results.get(self.load, {})
            ours = by_server.get(self.ours, {}).get(self.figure)
            theirs = by_server.get(self.theirs, {}).get(self.figure)
            if ours is not None and theirs:
                found.append(ours / theirs)
        return found

    def is_met(self, ratio: float) -> bool:
        """Return whether a ratio keeps the bound."""
        return ratio >= self.bound if self.at_least else ratio <= self.bound


def goals() -> list[Goal]:
    """Return every goal, in the order of the table."""
    rate = "tokens_per_second"
    found = [
        Goal(f"tokens/s, {load} ÷ vllm-rs", load, rate, COMPLETIONS, VLLM_RS, bound, at_least=True)
        for load, bound in ((streams(64), 1.6), (streams(256), 1.8), (streams(1024), 2.0))
    ]
    for ours in (COMPLETIONS, NATIVE):
        found += [
            Goal(f"tokens/s, {load}: {ours} ÷ {FLOOR}", load, rate, ours, FLOOR, bound, True)
            for load, bound in ((streams(64), 0.75), (streams(256), 0.75), (streams(1024), 0.7))
        ]
    found += [
        Goal(f"{title}, {load} ÷ vllm-rs", load, figure, COMPLETIONS, VLLM_RS, bound)
        for title, load, figure, bound in (
            ("first token", streams(256), "first_p50_ms", 0.7),
            ("CPU", ONE_TOKEN, "cpu_us_per_request", 1.0),
            ("gap p99", streams(1024), "gap_p99_ms", 0.7),
        )
    ]
    ours, theirs = embedded.OURS, embedded.THEIRS
    found += [
        Goal(f"tokens/s, {load} ÷ {theirs}", load, rate, ours, theirs, 1.0, at_least=True)
        for load in map(embedded_streams, (1, 16, 64))
    ]
    found += [
        Goal(f"first token, {load} ÷ {theirs}", load, "ttft_p50_ms", ours, theirs, bound)
        for load, bound in ((embedded_streams(1), 1.2), (embedded_streams(16), 1.1))
    ]
    return found


def judge(repeats: Sequence[Results]) -> dict[str, Figures]:
    """Return the median and the spread of each ratio that a run has the figures for.

    Ratios are taken within a repeat: its turns follow each other within minutes.
    """
    judged: dict[str, Figures] = {}
    for goal in goals():
        if found := goal.ratios(repeats):
            median = statistics.median(found)
            judged[goal.title] = {
                "median": round(median, 3),
                "min": round(min(found), 3),
                "max": round(max(found), 3),
                "goal": f"at {'least' if goal.at_least else 'most'} {goal.bound:g}",
                "met": goal.is_met(median),
            }
    return judged


def table(judged: dict[str, Figures]) -> str:
    """Format the ratios as Markdown, each with its goal."""
    lines = ["| ratio | median | min to max | goal | |", "|---|---|---|---|---|"]
    for goal in goals():
        shown = "not measured | | |"
        if each := judged.get(goal.title):
            verdict = "met" if each["met"] else "missed"
            spread = f"{each['min']:.2f} to {each['max']:.2f}"
            shown = f"{each['median']:.2f} | {spread} | {each['goal']} | {verdict}"
        lines.append(f"| {goal.title} | {shown} |")
    return "\n".join(lines)
