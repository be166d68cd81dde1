"""Keeps the server within its memory: refuses new work, then drops what is cheapest to lose.

In: the process's memory, as the system counts it, and the streams. The guard looks at them several
times a second.

- From `REFUSE_AT` of the limit on, the server refuses new requests. It drops kept streams, the
  oldest of the owner that keeps most, until it is below `CALM_AT`.
- From `END_AT` on, it also cuts the readers of other replicas' streams, which go on there. Then it
  ends open streams: first those that wait in the queue, then those that run and nobody reads, then
  the others; of each kind the largest first.

The allocator may keep memory that was freed, for later use. So the memory in use is the process's
memory, but at most its memory before the first request plus `SLACK` times what is held (see
`footprint`). If the process nevertheless grows beyond the limit, the server refuses new requests
until it has stopped growing.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Protocol

from penstock.stream.stream import Stream

log = logging.getLogger(__name__)

CALM_AT = 0.8
REFUSE_AT = 0.85
END_AT = 0.95
SLACK = 1.5
LOOK_EVERY_S = 0.2
GROWTH_PAUSE_S = 5.0
FULL = "The server's memory is nearly full. Send the request again later."


class Holders(Protocol):
    """What holds memory (see `registry`)."""

    memory_is_full: bool
    """True while new requests are refused."""

    def bytes_by_state(self) -> dict[str, int]:
        """Return the memory of all streams in bytes, by their states."""

    def drop_kept(self) -> int:
        """Drop one kept stream; return its memory in bytes, 0 if there is none."""

    def cut_followed(self, num_bytes: int) -> tuple[int, int]:
        """Cut readers of other replicas' streams, the largest first, until these held so much.

        Returns how many streams that were, and their memory in bytes.
        """

    def cheapest_first(self) -> list[Stream]:
        """Return the open streams in the order in which to end them."""


class MemoryGuard:
    """Keeps `holders` within `limit` bytes; 0 means no limit.

    `resident` returns the process's memory in bytes, or None if the system does not tell. Then the
    memory in use is what is held. `body_bytes` returns the memory of the bodies under way.
    `return_freed` gives freed memory back to the system.
    """

    def __init__(
        self,
        limit: int,
        holders: Holders,
        body_bytes: Callable[[], int],
        resident: Callable[[], int | None],
        return_freed: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self._holders = holders
        self._body_bytes = body_bytes
        self._resident = resident
        self._return_freed = return_freed
        self._base = resident() or 0
        self._peak = limit
        self._grew_at = -math.inf

    async def run(self) -> None:
        """Look at the memory, for ever."""
        loop = asyncio.get_running_loop()
        while self.limit:
            self.look(loop.time())
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self, now: float) -> None:
        """Look at the memory once, at the time `now` in seconds, and act."""
        resident = self._resident()
        if resident is None or resident >= REFUSE_AT * self.limit:
            self._note_growth(resident or 0, now)
            used = self._used(resident)
        else:
            used = resident
        is_growing = now - self._grew_at < GROWTH_PAUSE_S
        self._tell(is_full=used >= REFUSE_AT * self.limit or is_growing)
        if used >= REFUSE_AT * self.limit:
            excess = used - int(CALM_AT * self.limit)
            self._drop(excess, may_end=used >= END_AT * self.limit)

    def held_bytes(self) -> dict[str, int]:
        """Return the memory that is held, in bytes, by its kind."""
        return {**self._holders.bytes_by_state(), "bodies": self._body_bytes()}

    def used(self) -> int:
        """Return the memory in use, in bytes."""
        return self._used(self._resident())

    def _used(self, resident: int | None) -> int:
        held = self._base + int(SLACK * sum(self.held_bytes().values()))
        return held if resident is None else min(resident, held)

    def _note_growth(self, resident: int, now: float) -> None:
        if resident > self._peak:
            self._peak = resident
            self._grew_at = now

    def _tell(self, *, is_full: bool) -> None:
        if is_full != self._holders.memory_is_full:
            self._holders.memory_is_full = is_full
            if is_full:
                log.warning("the memory is nearly full: new requests are refused")
            else:
                log.info("the memory is no longer full")

    def _drop(self, num_bytes: int, *, may_end: bool) -> None:
        """Drop streams that hold `num_bytes` together: kept ones, with `may_end` also others."""
        num_kept = num_cut = num_ended = 0
        while num_bytes > 0 and (freed := self._holders.drop_kept()):
            num_bytes -= freed
            num_kept += 1
        if may_end and num_bytes > 0:
            num_cut, freed = self._holders.cut_followed(num_bytes)
            num_bytes -= freed
        for stream in self._holders.cheapest_first() if may_end and num_bytes > 0 else ():
            if stream.ended is None:  # it may end together with the other choices of its answer
                num_bytes -= stream.num_bytes()
                stream.give_up("memory_full", FULL)
                num_ended += 1
            if num_bytes <= 0:
                break
        if num_kept or num_cut or num_ended:
            self._return_freed()
            fields = {"kept": num_kept, "followed": num_cut, "open": num_ended}
            log.warning("the memory is full: dropped streams", extra={"fields": fields})
