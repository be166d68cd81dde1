"""Chooses the slot whose cache a prompt uses: llama.cpp keeps in each slot the last prompt's state.

In: prompts, as token ids, when they get a slot and when they leave it. Out: numbers of slots. By
itself llama.cpp takes a slot for another conversation as soon as a tenth of the prompt is the same,
though other slots are empty. All sessions of an agent begin alike for thousands of tokens, so two
of them would spoil each other's cache at every turn. Not known here: llama.cpp, requests, time.
"""

import contextlib
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MOST_LOST = 0.1
"""A prompt continues a slot's conversation if it leaves out no larger part of it than this."""
LEAST_SHARED = 0.5
"""A prompt takes another conversation's slot if it has so much of its own text from there."""


@dataclass
class _Prompt:
    """A prompt that a slot has, or had."""

    ids: bytes
    """The ids of the tokens, packed, so that comparing them is fast."""
    used: int
    """When the prompt got its slot: requests count the time."""

    def shares(self, other: bytes) -> int:
        """Return how many bytes at the beginning are the same."""
        return _shared(self.ids, other)

    def continues_in(self, other: bytes) -> bool:
        """Return True if the other prompt has almost all of this one at its beginning."""
        return self.shares(other) >= len(self.ids) * (1 - MOST_LOST)


class SlotCaches:
    """What `num_slots` slots have in their caches. At most so many requests have a slot at once."""

    def __init__(self, num_slots: int) -> None:
        self._held = [_Prompt(b"", 0) for _ in range(num_slots)]
        self._slot_of: dict[str, int] = {}
        self._clock = 0
        self._displaced: deque[_Prompt] = deque(maxlen=num_slots)
        """The last prompts whose slots went to other conversations that begin like theirs."""

    @contextlib.contextmanager
    def taken(self, request_id: str, token_ids: Sequence[int]) -> Iterator[int]:
        """Give the request with this prompt a slot until it leaves it, or the context ends."""
        prompt = array("I", token_ids).tobytes()
        self._clock += 1
        slot = self._choose(prompt)
        self._held[slot] = _Prompt(prompt, self._clock)
        self._slot_of[request_id] = slot
        try:
            yield slot
        finally:
            self.leave(request_id)

    def leave(self, request_id: str) -> None:
        """Let the request's slot be chosen again; without effect if it was left before."""
        self._slot_of.pop(request_id, None)

    def _choose(self, prompt: bytes) -> int:
        free = set(range(len(self._held))).difference(self._slot_of.values())
        oldest = min(free, key=lambda slot: self._held[slot].used)
        nearest = max(free, key=lambda slot: self._held[slot].shares(prompt))
        held = self._held[nearest]
        if held.ids and held.continues_in(prompt):
            return nearest
        if held.shares(prompt) < LEAST_SHARED * len(prompt):  # a new conversation
            return oldest
        if self._came_back_since(self._held[oldest].used, prompt):
            return oldest
        self._displaced.append(held)
        return nearest

    def _came_back_since(self, used: int, prompt: bytes) -> bool:
        """Return True if another conversation took the slot of the prompt's, after `used`.

        So both go on, and nobody has used a third slot meanwhile. To read the prompt anew there
        costs once what the two would cost each other at every turn.
        """
        for displaced in self._displaced:
            if displaced.continues_in(prompt):
                self._displaced.remove(displaced)
                return used < displaced.used
        return False


def _shared(one: bytes, other: bytes) -> int:
    """Return how many bytes at the beginning of both are the same."""
    same, differs = 0, min(len(one), len(other)) + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differs = middle
    return same
