"""What becomes of the pairs of `benchmarks.balancers`."""

from benchmarks.balancers import HEAD, Pair, row
from benchmarks.paced import Round


def pair(direct: float, through: float) -> Pair:
    """Return a pair whose times are all the same."""
    return Pair(
        Round({}, direct, direct, direct), Round({"balancer": 7.0}, through, through, through)
    )


def test_a_ratio_is_the_median_of_the_pairs_ratios() -> None:
    """The medians alone are 4 and 8: their ratio would be 2."""
    line = row("through", [pair(1, 8), pair(4, 4), pair(10, 15)])
    assert line == "| through | 8.0 | 8.0 | 8.0 | 1.50 | 1.50 | 1.50 | 7 |"
    assert line.count("|") == len(HEAD) + 2
