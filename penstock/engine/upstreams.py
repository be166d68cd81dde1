"""The upstreams of an engine, as the server adds them up.

In: the states that a process of the engine reports. Out: states whose counts go on after the
process has died. Not known here: messages, metrics.
"""

from collections.abc import Iterable
from operator import attrgetter

import msgspec

from penstock.engine.protocol import UPSTREAM_COUNTS, UpstreamState

_counts_of = attrgetter(*UPSTREAM_COUNTS)


class UpstreamCounts:
    """Adds up what the processes of one engine report, one after the other."""

    def __init__(self) -> None:
        self.states: tuple[UpstreamState, ...] = ()
        self._before: dict[str, tuple[int, ...]] = {}
        """The counts of the processes before this one, by the upstream's name."""

    def note(self, states: Iterable[UpstreamState]) -> None:
        """Note what the present process reports."""
        self.states = tuple(self._with_earlier(each) for each in states)

    def begin_anew(self) -> None:
        """Note that the process has died: its requests are gone, and the next one counts from 0."""
        self._before = {each.name: _counts_of(each) for each in self.states}
        self.states = tuple(msgspec.structs.replace(each, running=0) for each in self.states)

    def _with_earlier(self, state: UpstreamState) -> UpstreamState:
        before = self._before.get(state.name)
        if before is None:  # almost always
            return state
        now = zip(UPSTREAM_COUNTS, _counts_of(state), before, strict=True)
        return msgspec.structs.replace(state, **{name: new + old for name, new, old in now})
