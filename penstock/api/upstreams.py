"""Counts an engine's upstreams by model. The counts contain no addresses.

In: the states that the engine reports. Out: how many upstreams of each model are up, for health
checks and the live view. (Only the metrics have addresses.)
"""

from collections.abc import Iterable

from penstock.engine.protocol import UpstreamState


def up_by_model(states: Iterable[UpstreamState]) -> dict[str, tuple[int, int]]:
    """Return how many upstreams of each model are up, and of how many.

    Upstreams whose model is not known yet are counted under the name "".
    """
    counts: dict[str, tuple[int, int]] = {}
    for each in states:
        num_up, num_all = counts.get(each.model, (0, 0))
        counts[each.model] = (num_up + each.is_up, num_all + 1)
    return counts
