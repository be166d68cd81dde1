"""The other server processes that share this process's address (`--processes`).

In: what this process can say about itself. Out: what all processes say together. Not known here:
how they talk.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from prometheus_client.registry import Collector


class Siblings(Protocol):
    """The link to the other server processes."""

    def attach(self, metrics: Collector, state: Callable[[], str]) -> None:
        """Take the sources of this process's own metrics and state.

        The state is "ready", or the reason why this process cannot serve requests now.
        """

    async def metrics(self) -> Collector:
        """Return the metrics of all processes together. Raises Problem if that takes too long."""

    def states(self) -> Mapping[int, str]:
        """Return the last known state of every process, by its number."""
