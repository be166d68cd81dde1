"""Readers that go on at another replica when their connection is cut or refused."""

import itertools
from collections.abc import Sequence
from typing import Any

from tests.faults.history import Got, History, Truth, numbered
from tests.faults.proxy import Address
from tests.faults.reading import Reader, fresh_word


class RovingReader(Reader):
    """A reader that asks the next of `replicas` whenever it attaches."""

    def __init__(self, replicas: Sequence[Address], history: History) -> None:
        super().__init__(replicas[0], history)
        self._history_of_all = history
        self._turn = itertools.cycle([*replicas[1:], replicas[0]])

    def turn_to(self, replicas: Sequence[Address]) -> None:
        """Ask these replicas from now on."""
        self._turn = itertools.cycle(replicas)

    async def begin(self, num_tokens: int, *, length: int = 1_000_000, **fields: Any) -> Truth:
        """Open a stream of numbered tokens at the first replica."""
        truth = numbered(fresh_word(), length=length, max_tokens=num_tokens)
        await self.open(truth, max_tokens=num_tokens, **fields)
        return truth

    async def attach(self, stream: str = "", **fields: Any) -> None:
        self.address = next(self._turn)
        await super().attach(stream, **fields)

    def longest_pause_after(self, moment: float) -> float | None:
        """Return the longest time without a token here after a moment, in seconds.

        The moment counts as a token. Returns None if no token came after it.
        """
        entries = self._history_of_all.streams[self.stream].entries
        later = [
            entry.time
            for entry in entries
            if isinstance(entry, Got) and entry.reader == self.name and entry.time > moment
        ]
        gaps = (at - before for before, at in itertools.pairwise([moment, *later]))
        return max(gaps, default=None)
