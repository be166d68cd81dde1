"""Owners of streams, and how much each may open, keep and use.

An owner is an API key or, without keys, a client's address. `Quotas` counts what each owner has
and says why an owner may not open another stream now. What the owner has at other replicas counts
too (see `shared_limits`). It is told the time, and knows nothing about keys, addresses or HTTP.
`budget` has the rules of tokens per minute.
"""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from penstock.errors import Problem
from penstock.stream.budget import Budget, Claim
from penstock.stream.shared_limits import NOTHING, Counts, Others


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
    admins. `key_id` tells the keys of one owner apart; it is empty without keys.
    """

    name: str = ""
    limits: OwnerLimits = OwnerLimits()
    is_closed: bool = False
    is_admin: bool = False
    key_id: str = ""

    @property
    def label(self) -> str:
        """Return the configured name of a key, for metrics."""
        return self.name.removeprefix("key ")

    def may_see(self, other: "Owner") -> bool:
        """Return True if this owner may read and cancel the streams of `other`."""
        return self.is_admin or not other.is_closed or self.name == other.name


ANYBODY = Owner()
TOKEN_HEADERS = (
    "X-RateLimit-Limit-Tokens",
    "X-RateLimit-Remaining-Tokens",
    "X-RateLimit-Reset-Tokens",
)
"""The headers in which OpenAI's API says how many tokens are left, and until when."""


class Quotas:
    """What each owner has open, keeps and has used."""

    def __init__(self) -> None:
        self._num_open: collections.Counter[str] = collections.Counter()
        self._num_resumable: collections.Counter[str] = collections.Counter()
        self._kept_bytes: collections.Counter[str] = collections.Counter()
        self._budgets: dict[str, Budget] = {}
        self._others = Others()
        # The owners with limits that have something here, as far as one has looked.
        self._limited: set[str] = set()

    def refusal(self, owner: Owner, *, resumable: bool, num_streams: int) -> Problem | None:
        """Return the problem if `owner` may not open `num_streams` more streams now."""
        limits = owner.limits
        max_streams = math.inf if limits.max_streams is None else limits.max_streams
        others = self._others.of(owner.name) if self._others else NOTHING
        num_open = self._num_open[owner.name] + others.num_open
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
            and self._num_resumable[owner.name] + others.num_resumable >= limits.max_resumable
        ):
            return _refusal(
                "too_many_streams",
                f"This key may have {limits.max_resumable} resumable streams, running or kept after"
                " their end, and has that many. Try again when some are no longer kept.",
                10,
            )
        return None

    def opened(self, owner: Owner, *, resumable: bool) -> None:
        """Count a new stream."""
        limits = owner.limits
        if not (limits.max_streams is limits.max_resumable is limits.max_retained_bytes is None):
            self._limited.add(owner.name)
        self._num_open[owner.name] += 1
        self._num_resumable[owner.name] += resumable

    def ended(self, owner: Owner) -> None:
        """Count the end of a stream."""
        _lower(self._num_open, owner.name, 1)

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
        kept = self._kept_bytes[owner.name]
        return limit is not None and 0 < kept > limit - self._others.of(owner.name).kept_bytes

    # Tokens per minute. Owners without this limit have no budget.

    def refusal_of_tokens(
        self, owner: Owner, claims: Sequence[Claim], now: float
    ) -> Problem | None:
        """Return the problem if `owner` cannot reserve the tokens of all `claims` now."""
        budget = self._budget_of(owner, now)
        num_tokens = sum(claim.within(budget.per_minute) for claim in claims)
        if num_tokens > budget.per_minute:
            return _too_large(budget.per_minute, num_tokens)
        wait = budget.wait(num_tokens, now)
        return _no_tokens_left(budget, num_tokens, wait, now) if wait else None

    def reserve(
        self, owner: Owner, stream_id: str, claim: Claim, used: Callable[[], int], now: float
    ) -> None:
        """Reserve the tokens of a new stream. `used` returns those that it has had so far."""
        self._budget_of(owner, now).reserve(stream_id, claim, used, now)

    def adopted(
        self, owner: Owner, stream_id: str, num_tokens: int, used: Callable[[], int], now: float
    ) -> None:
        """Reserve the tokens that a stream of another replica may still have here, in any case."""
        budget = self._budget_of(owner, now)
        budget.reserve(stream_id, Claim(0, num_tokens), used, now)
        budget.count_prompt(stream_id, 0, now)  # it costs what it uses from here

    def prompt_counted(
        self, owner: Owner, stream_id: str, num_tokens: int, now: float
    ) -> Problem | None:
        """Correct a stream's reservation, or return the problem for which the stream must end."""
        budget = self._budgets[owner.name]
        wait = budget.count_prompt(stream_id, num_tokens, now)
        if math.isinf(wait):
            return _too_large(budget.per_minute, num_tokens)
        return _no_tokens_left(budget, num_tokens, wait, now) if wait else None

    def settle(self, owner: Owner, stream_id: str, now: float, *, has_begun: bool) -> None:
        """Give back what an ended stream did not use; `has_begun` is True if it had a slot."""
        self._budgets[owner.name].settle(stream_id, now, has_begun=has_begun)

    def release(self, owner: Owner, stream_id: str, now: float) -> None:
        """Give back all tokens of a stream that was not admitted."""
        self._budgets[owner.name].release(stream_id, now)

    def token_headers(self, owner: Owner, now: float) -> dict[str, str]:
        """Return the headers that tell an owner with a limit how many tokens are left."""
        return _headers(self._budget_of(owner, now), now)

    # The limits over several replicas.

    def counts(self, now: float) -> dict[str, Counts]:
        """Return what each owner with limits has here, if it has anything."""
        counts = {name: self._counts_of(name, now) for name in self._limited | self._budgets.keys()}
        counts = {name: each for name, each in counts.items() if each != NOTHING}
        self._limited &= counts.keys()
        return counts

    def others_have(self, replicas: Mapping[str, Mapping[str, Counts]], now: float) -> None:
        """Note what each owner has at each of the other replicas."""
        self._others.update(replicas, self._budgets, now)

    def _counts_of(self, name: str, now: float) -> Counts:
        budget = self._budgets.get(name)
        return Counts(
            self._num_open[name],
            self._num_resumable[name],
            self._kept_bytes[name],
            0 if budget is None else budget.num_taken,
            0 if budget is None else budget.num_unused(now),
            None if budget is None else budget.left(now),
        )

    def _budget_of(self, owner: Owner, now: float) -> Budget:
        """Return the owner's budget with its present limit; what was used stays used."""
        per_minute = owner.limits.tokens_per_minute
        assert per_minute is not None
        budget = self._budgets.get(owner.name)
        if budget is None:
            budget = self._budgets[owner.name] = Budget(per_minute, now)
            self._others.begin(owner.name, budget, now)
        budget.set_limit(per_minute, now)
        return budget


def _lower(counts: collections.Counter[str], name: str, by: int) -> None:
    """Lower a counter and remove it at 0: owners come and go."""
    counts[name] -= by
    if counts[name] <= 0:
        del counts[name]


def _refusal(code: str, detail: str, retry_after: float) -> Problem:
    return Problem(code, detail, headers={"Retry-After": str(math.ceil(retry_after))})


def _no_tokens_left(budget: Budget, num_tokens: int, wait: float, now: float) -> Problem:
    problem = _refusal(
        "too_many_tokens",
        f"This key may use {budget.per_minute} tokens a minute. This request may need"
        f" {num_tokens}, and {budget.left(now)} are left. Try again later, or set a smaller"
        " max_tokens.",
        wait,
    )
    problem.headers |= _headers(budget, now)
    return problem


def _too_large(per_minute: int, num_tokens: int) -> Problem:
    return Problem(
        "too_many_tokens",
        f"This key may use {per_minute} tokens a minute, and this request needs {num_tokens} for"
        " its prompt and its answer. Shorten the prompt, or set a smaller max_tokens.",
        retry_safe=False,
    )


def _headers(budget: Budget, now: float) -> dict[str, str]:
    wait = f"{budget.wait(budget.per_minute, now):.3f}s"
    values = (str(budget.per_minute), str(budget.left(now)), wait)
    return dict(zip(TOKEN_HEADERS, values, strict=True))
