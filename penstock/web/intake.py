"""The memory of the bodies that are being read and parsed, over all and per owner.

In: each body's owner and length, before the body is read or as it grows. Out: an entry, or the
problem for which the request is refused. Owners share the memory (see `stream.shares`). A key with
`max_streams` has at most that many bodies under way. This module does not read bodies.
"""

import collections
from types import TracebackType
from typing import Self

from penstock.errors import Problem
from penstock.stream.quotas import Owner
from penstock.stream.shares import Shares

BODIES_BYTES = 64 * 1024 * 1024
"""The memory of all bodies under way, in bytes, unless single ones may be much larger."""
MIN_BODIES = 16
"""The number of the largest bodies for which there is room in any case."""
REQUEST_BYTES = 16 * 1024
"""What a request takes besides its body until it is parsed, in bytes."""
RETRY_AFTER_S = 1


class Entry:
    """One body under way. As a context manager it gives back its memory at the end."""

    __slots__ = ("_intake", "_num_bytes", "_owner")

    def __init__(self, intake: "Intake", owner: Owner) -> None:
        self._intake = intake
        self._owner = owner.name
        self._num_bytes = 0

    def grow_to(self, num_bytes: int) -> None:
        """Take memory for a body of this length, if it is more than before. Raises Problem."""
        wanted = REQUEST_BYTES + num_bytes
        if wanted <= self._num_bytes:
            return
        if not self._intake.shares.take(self._owner, wanted - self._num_bytes):
            raise _full()
        self._num_bytes = wanted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._intake.leave(self._owner, self._num_bytes)


class Intake:
    """The bodies under way. One body has at most `max_body_bytes`."""

    def __init__(self, max_body_bytes: int) -> None:
        self.shares = Shares(max(BODIES_BYTES, MIN_BODIES * max_body_bytes))
        """The memory that the bodies take, in bytes."""
        self._num_of: collections.Counter[str] = collections.Counter()

    def enter(self, owner: Owner, num_bytes: int) -> Entry:
        """Return an entry for a body with this length, as far as it is known. Raises Problem."""
        limit = owner.limits.max_streams
        if limit is not None and self._num_of[owner.name] >= limit:
            raise Problem(
                "too_many_streams",
                f"This key may have {limit} streams at once and is sending that many requests.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        entry = Entry(self, owner)
        entry.grow_to(num_bytes)
        self._num_of[owner.name] += 1
        return entry

    def leave(self, owner: str, num_bytes: int) -> None:
        """Note that a body is no longer under way."""
        self.shares.give_back(owner, num_bytes)
        self._num_of[owner] -= 1
        if self._num_of[owner] <= 0:
            del self._num_of[owner]


def _full() -> Problem:
    return Problem(
        "bodies_full",
        "Too many bytes of requests are under way. Send fewer requests at once, or try again.",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
