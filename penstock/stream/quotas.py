"""Owners of streams, and how much each may open, keep and use.

An owner is an API key or, without keys, a client's address. `Quotas` counts what each owner has
and says why an owner may not open another stream now. It is told the time, and knows nothing about
keys, addresses or HTTP.
"""

import collections
import math
from dataclasses import dataclass

from penstock.errors import Problem


@dataclass(frozen=True)
class OwnerLimits:
    """An owner's limits; None means no limit.

    `max_streams` limits open streams. `max_resumable` limits resumable streams, open or kept after
    their end. `max_retained_bytes` limits the memory of kept streams. `tokens_per_minute` limits
    the tokens of prompts and answers.
    """

    max_streams: int | None = None
    max_resumable: int | None = None
    max_retained_bytes: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class Owner:
    """An API key or, without keys, a client's address.

    Streams of a closed owner (`is_closed`) can be read and cancelled only by that owner and by
    admins.
    """

    name: str = ""
    limits: OwnerLimits = OwnerLimits()
    is_closed: bool = False
    is_admin: bool = False

    def may_see(self, other: "Owner") -> bool:
        """Return True if this owner may read and cancel the streams of `other`."""
        return self.is_admin or not other.is_closed or self.name == other.name


ANYBODY = Owner()


class Budget:
    """A budget of tokens per minute.

    Unused tokens are saved for up to one minute. Overuse must refill before the next request.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._balance = float(per_minute)
        self._as_of = now

    def spend(self, num_tokens: int, now: float) -> None:
        """Take `num_tokens` from the budget, below zero if need be."""
        self._balance = self._at(now) - num_tokens
        self._as_of = now

    def wait(self, num_under_way: int, now: float) -> float:
        """Return the seconds until a token is left besides the `num_under_way` in use."""
        missing = num_under_way + 1 - self._at(now)
        return max(0.0, missing * 60 / self._per_minute)

    def _at(self, now: float) -> float:
        saved = (now - self._as_of) * self._per_minute / 60
        return min(float(self._per_minute), self._balance + saved)


class Quotas:
    """What each owner has open, keeps and has used."""

    def __init__(self) -> None:
        self._num_open: collections.Counter[str] = collections.Counter()
        self._num_resumable: collections.Counter[str] = collections.Counter()
        self._kept_bytes: collections.Counter[str] = collections.Counter()
        self._budgets: dict[tuple[str, int], Budget] = {}

    def refusal(
        self, owner: Owner, *, resumable: bool, num_streams: int, num_under_way: int, now: float
    ) -> Problem | None:
        """Return the problem if `owner` may not open `num_streams` more streams now.

        `num_under_way` counts the tokens of the owner's open streams.
        """
        limits = owner.limits
        max_streams = math.inf if limits.max_streams is None else limits.max_streams
        num_open = self._num_open[owner.name]
        if num_streams > max_streams:
            return Problem(
                "too_many_choices",
                f"Each choice is a stream, and this key may have {max_streams} at once.",
            )
        if num_open + num_streams > max_streams:
            return _refusal(
                "too_many_streams",
                f"This key may have {max_streams} streams at once and has {num_open}. Wait until"
                " a stream ends, or cancel one.",
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
                " their end, and has that many. Try again when some are no longer kept.",
                10,
            )
        if limits.tokens_per_minute is not None:
            wait = self._budget(owner, limits.tokens_per_minute, now).wait(num_under_way, now)
            if wait:
                return _refusal(
                    "too_many_tokens",
                    f"This key may use {limits.tokens_per_minute} tokens a minute and has used"
                    " them. Try again later.",
                    wait,
                )
        return None

    def opened(self, owner: Owner, *, resumable: bool) -> None:
        """Count a new stream."""
        self._num_open[owner.name] += 1
        self._num_resumable[owner.name] += resumable

    def ended(self, owner: Owner, num_tokens: int, now: float) -> None:
        """Count the end of a stream that used `num_tokens` tokens."""
        _lower(self._num_open, owner.name, 1)
        if owner.limits.tokens_per_minute is not None:
            self._budget(owner, owner.limits.tokens_per_minute, now).spend(num_tokens, now)

    def kept(self, owner: Owner, num_bytes: int) -> None:
        """Count the memory of a resumable stream that is kept after its end, in bytes."""
        self._kept_bytes[owner.name] += num_bytes

    def dropped(self, owner: Owner, num_bytes: int) -> None:
        """Count a resumable stream that is no longer kept; 0 bytes if it never was."""
        _lower(self._num_resumable, owner.name, 1)
        _lower(self._kept_bytes, owner.name, num_bytes)

    def keeps_too_much(self, owner: Owner) -> bool:
        """Return True if some of the owner's kept streams must be dropped."""
        limit = owner.limits.max_retained_bytes
        return limit is not None and self._kept_bytes[owner.name] > limit

    def _budget(self, owner: Owner, per_minute: int, now: float) -> Budget:
        name = (owner.name, per_minute)  # a changed limit starts a new budget
        if name not in self._budgets:
            for each in [each for each in self._budgets if each[0] == owner.name]:
                del self._budgets[each]
            self._budgets[name] = Budget(per_minute, now)
        return self._budgets[name]


def _lower(counts: collections.Counter[str], name: str, by: int) -> None:
    """Lower a counter and remove it at 0: owners come and go."""
    counts[name] -= by
    if counts[name] <= 0:
        del counts[name]


def _refusal(code: str, detail: str, retry_after: float) -> Problem:
    return Problem(code, detail, headers={"Retry-After": str(math.ceil(retry_after))})
