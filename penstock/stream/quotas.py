"""Owners: whose streams they are, and how much each may have.

In: what owners open, keep and use, and the time, which is told. Out: None, or the problem for which
an owner may not open another stream now. Not known here: keys, addresses, HTTP, clocks.
"""

import collections
import math
from dataclasses import dataclass

from penstock.errors import Problem


@dataclass(frozen=True)
class OwnerLimits:
    """What one owner may have at most; None is no bound.

    `max_streams`: open at once. `max_resumable`: resumable ones, open or kept after their end.
    `max_retained_bytes`: memory for the kept ones. `tokens_per_minute`: of prompts and answers.
    """

    max_streams: int | None = None
    max_resumable: int | None = None
    max_retained_bytes: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class Owner:
    """Who opens streams: one with an API key, or, without keys, whoever comes from an address.

    `is_closed`: what is this owner's is nobody else's to see or to end, but an admin's.
    """

    name: str = ""
    limits: OwnerLimits = OwnerLimits()
    is_closed: bool = False
    is_admin: bool = False

    def may_see(self, other: "Owner") -> bool:
        """Whether streams of `other` are for this one to read and to end."""
        return self.is_admin or not other.is_closed or self.name == other.name


ANYBODY = Owner()


class Budget:
    """Tokens by the minute: what was not used is saved up for one minute, what was used too much
    has to be waited for."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._balance = float(per_minute)
        self._as_of = now

    def spend(self, num_tokens: int, now: float) -> None:
        """So many were used."""
        self._balance = self._at(now) - num_tokens
        self._as_of = now

    def wait(self, num_under_way: int, now: float) -> float:
        """Seconds until there is something to spend, beside what is being used."""
        missing = num_under_way + 1 - self._at(now)
        return max(0.0, missing * 60 / self._per_minute)

    def _at(self, now: float) -> float:
        saved = (now - self._as_of) * self._per_minute / 60
        return min(float(self._per_minute), self._balance + saved)


class Quotas:
    """What each owner has and has used."""

    def __init__(self) -> None:
        self._num_open: collections.Counter[str] = collections.Counter()
        self._num_resumable: collections.Counter[str] = collections.Counter()
        self._kept_bytes: collections.Counter[str] = collections.Counter()
        self._budgets: dict[tuple[str, int], Budget] = {}

    def refusal(
        self, owner: Owner, *, resumable: bool, num_streams: int, num_under_way: int, now: float
    ) -> Problem | None:
        """Why this owner may not open so many streams now. `num_under_way`: tokens of its open
        ones."""
        limits = owner.limits
        max_streams = math.inf if limits.max_streams is None else limits.max_streams
        if num_streams > max_streams:
            return Problem(
                "too_many_choices",
                f"Each choice is a stream, and this key may have {max_streams} at once.",
            )
        if self._num_open[owner.name] + num_streams > max_streams:
            return _refusal(
                "too_many_streams",
                f"This key may have {max_streams} streams at once, and has"
                f" {self._num_open[owner.name]}. Wait until one ends, or end one.",
                1,
            )
        if (
            resumable
            and limits.max_resumable is not None
            and self._num_resumable[owner.name] >= limits.max_resumable
        ):
            return _refusal(
                "too_many_streams",
                f"This key may have {limits.max_resumable} resumable streams, running or kept after"
                " their end, and has them. Try again when some are no longer kept.",
                10,
            )
        if limits.tokens_per_minute is not None:
            wait = self._budget(owner, limits.tokens_per_minute, now).wait(num_under_way, now)
            if wait:
                return _refusal(
                    "too_many_tokens",
                    f"This key may use {limits.tokens_per_minute} tokens a minute, and has used"
                    " them. Try again later.",
                    wait,
                )
        return None

    def opened(self, owner: Owner, *, resumable: bool) -> None:
        """It has one more."""
        self._num_open[owner.name] += 1
        self._num_resumable[owner.name] += resumable

    def ended(self, owner: Owner, num_tokens: int, now: float) -> None:
        """One of its streams has ended after so many tokens."""
        _lower(self._num_open, owner.name, 1)
        if owner.limits.tokens_per_minute is not None:
            self._budget(owner, owner.limits.tokens_per_minute, now).spend(num_tokens, now)

    def kept(self, owner: Owner, num_bytes: int) -> None:
        """One of its resumable streams has ended and is kept."""
        self._kept_bytes[owner.name] += num_bytes

    def dropped(self, owner: Owner, num_bytes: int) -> None:
        """One of its resumable streams is kept no more, or not at all (0 bytes)."""
        _lower(self._num_resumable, owner.name, 1)
        _lower(self._kept_bytes, owner.name, num_bytes)

    def keeps_too_much(self, owner: Owner) -> bool:
        """Whether some of what is kept for it must go."""
        limit = owner.limits.max_retained_bytes
        return limit is not None and self._kept_bytes[owner.name] > limit

    def _budget(self, owner: Owner, per_minute: int, now: float) -> Budget:
        name = (owner.name, per_minute)  # another limit is another budget
        if name not in self._budgets:
            for each in [each for each in self._budgets if each[0] == owner.name]:
                del self._budgets[each]
            self._budgets[name] = Budget(per_minute, now)
        return self._budgets[name]


def _lower(counts: collections.Counter[str], name: str, by: int) -> None:
    """A counter that is 0 is not there: owners come and go."""
    counts[name] -= by
    if counts[name] <= 0:
        del counts[name]


def _refusal(code: str, detail: str, retry_after: float) -> Problem:
    headers = {"Retry-After": str(math.ceil(retry_after))}
    return Problem(code, detail, headers=headers)
