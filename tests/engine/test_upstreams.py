"""The counts of upstreams go on when the engine's process dies."""

from penstock.engine.protocol import UpstreamState
from penstock.engine.upstreams import UpstreamCounts

ONE, TWO = "http://one:80", "http://two:80"


def test_counts_never_go_back_and_requests_end_with_their_process() -> None:
    counts = UpstreamCounts()
    counts.note(
        [
            UpstreamState(ONE, "m", True, running=3, answered=5, failures=1),
            UpstreamState(TWO, "", False, failures=7),
        ]
    )
    counts.begin_anew()
    assert [each.running for each in counts.states] == [0, 0]
    assert [each.answered for each in counts.states] == [5, 0]
    counts.begin_anew()  # the next process did not start
    counts.note(
        [UpstreamState(ONE, "m", True, running=1, answered=2), UpstreamState(TWO, "m", True)]
    )
    assert counts.states == (
        UpstreamState(ONE, "m", True, running=1, answered=7, failures=1),
        UpstreamState(TWO, "m", True, failures=7),
    )
    counts.note([UpstreamState(ONE, "m", True, answered=3)])
    assert counts.states[0].answered == 8
