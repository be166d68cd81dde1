"""The tokens per minute of one owner: what its requests may use, and what they reserve beforehand.

In: claims of requests, their token counts, and the time. Out: how long a claim must wait. Not known
here: owners, streams, HTTP.

In any t seconds the requests use at most `per_minute * (1 + t / 60)` tokens, however many come at
once. To keep this promise, a request reserves all that it may use before it begins: an estimate of
its prompt, corrected when the engine has counted the prompt, and its token limit. When it ends, it
gives back the tokens that it did not use.

An owner may have a budget at each of several replicas. Then each of them refills at the whole rate
and is told, about once a second, what the others took (`others_took`) and hold reserved
(`others_hold`). With n replicas, any t seconds have at most `per_minute * (n + t / 60)` tokens:
until they hear of each other, each may give what is left, and all of them refill what was too much.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from penstock.request import Request

# The least that a request costs that ends before its prompt was counted, in tokens.
MIN_TOKENS = 16
# A request that names no token limit, or one that is larger than the whole budget, gets a limit of
# this share of the budget, which its choices divide among themselves.
SHARE = 1 / 4
# A guess that is corrected later: most tokenizers make about one token of four bytes of text.
BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 8
# How often a budget looks at what running requests have used so far, in seconds.
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Claim:
    """The tokens that a request may use: of its prompt, as far as known, and of its answer."""

    prompt: int
    answer: int

    def within(self, per_minute: int) -> int:
        """Return the tokens to reserve: a prompt may be smaller than its estimate."""
        return min(self.prompt + self.answer, per_minute)


@dataclass
class _Reservation:
    claim: Claim
    num_tokens: int
    used: Callable[[], int]
    unused: int
    is_counted: bool = False


class Budget:
    """A budget of `per_minute` tokens. Unused tokens are saved for up to one minute."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._reservations: dict[str, _Reservation] = {}
        # The tokens that are neither used nor reserved; negative if they must refill first.
        self._left = float(per_minute)
        # The reserved tokens that were not used yet when somebody looked: here, and elsewhere.
        self._unused = 0
        self._unused_elsewhere = 0
        self.num_taken = 0
        """The tokens that requests here have reserved and not given back, since the start."""
        self._looked_at = now
        self._as_of = now

    def set_limit(self, per_minute: int, now: float) -> None:
        """Change the limit. The tokens that are left stay, as far as the new limit allows."""
        if per_minute != self.per_minute:
            self._refill(now)
            self.per_minute = per_minute
            self._left = min(self._left, self._most_left())

    def left(self, now: float) -> int:
        """Return the tokens that a request can reserve now."""
        self._refill(now)
        return max(0, math.floor(self._left))

    def wait(self, num_tokens: int, now: float) -> float:
        """Return the seconds until `num_tokens` can be reserved.

        Tokens that running requests give back can make it sooner. Tokens that they hold reserved
        without using them can make it later.
        """
        self._refill(now)
        return max(0.0, (num_tokens - self._left) * 60 / self.per_minute)

    def reserve(self, request_id: str, claim: Claim, used: Callable[[], int], now: float) -> None:
        """Reserve a request's claim. `used` returns the tokens that the request has had so far."""
        self._refill(now)
        num_tokens = claim.within(self.per_minute)
        self._reservations[request_id] = _Reservation(claim, num_tokens, used, num_tokens)
        self._take(num_tokens)
        self._unused += num_tokens

    def count_prompt(self, request_id: str, num_tokens: int, now: float) -> float:
        """Correct a reservation, now that the prompt is known to have `num_tokens` tokens.

        Return 0, or the seconds until the larger reservation would fit: then nothing has changed,
        and the request must end. The result is infinite if it can never fit.
        """
        reservation = self._reservations.get(request_id)
        if reservation is None:
            return 0.0
        self._refill(now)
        needed = num_tokens + reservation.claim.answer
        more = needed - reservation.num_tokens
        if more > 0 and needed > self.per_minute:
            return math.inf
        if more > 0 and more > self._left:
            return (more - self._left) * 60 / self.per_minute
        reservation.num_tokens = needed
        reservation.unused += more
        reservation.is_counted = True
        self._take(more)
        self._unused += more
        return 0.0

    def settle(self, request_id: str, now: float, *, has_begun: bool) -> None:
        """End a request: give back the tokens that it did not use.

        A request that ends before its prompt was counted costs its estimate if it `has_begun`, that
        is, if it had a slot.
        """
        reservation = self._reservations.get(request_id)
        if reservation is not None:
            self._forget(request_id, _cost(reservation, has_begun=has_begun), now)

    def release(self, request_id: str, now: float) -> None:
        """Forget a request that was not admitted: it costs nothing."""
        if request_id in self._reservations:
            self._forget(request_id, 0, now)

    # What other replicas do with the same owner's tokens.

    def num_unused(self, now: float) -> int:
        """Return the tokens that requests here have reserved and not used yet."""
        self._refill(now)
        return self._unused

    def others_took(self, num_tokens: int, now: float) -> None:
        """Count tokens that requests elsewhere have reserved; negative if they gave some back."""
        self._refill(now)
        self._left -= num_tokens

    def others_hold(self, num_unused: int, now: float) -> None:
        """Note how many tokens requests elsewhere have reserved and not used yet."""
        self._refill(now)
        self._unused_elsewhere = num_unused

    def lower_to(self, left: int, now: float) -> None:
        """Have at most so many tokens left: as many as another replica that is older has."""
        self._refill(now)
        self._left = min(self._left, left)

    def _most_left(self) -> int:
        return self.per_minute - self._unused - self._unused_elsewhere

    def _take(self, num_tokens: int) -> None:
        self._left -= num_tokens
        self.num_taken += num_tokens

    def _forget(self, request_id: str, cost: int, now: float) -> None:
        self._refill(now)
        reservation = self._reservations.pop(request_id)
        self._take(cost - reservation.num_tokens)
        self._unused -= reservation.unused

    def _refill(self, now: float) -> None:
        # What is saved never exceeds the limit together with what is reserved and not used. Nobody
        # knows when the tokens were used since the last look, so the last look counts.
        saved = self._left + (now - self._as_of) * self.per_minute / 60
        self._left = max(self._left, min(saved, self._most_left()))
        self._as_of = now
        if now - self._looked_at >= LOOK_EVERY_S:
            self._look(now)

    def _look(self, now: float) -> None:
        """See how much of the reserved tokens was used."""
        self._looked_at = now
        self._unused = 0
        for each in self._reservations.values():
            each.unused = max(0, each.num_tokens - each.used())
            self._unused += each.unused


def _cost(reservation: _Reservation, *, has_begun: bool) -> int:
    if reservation.is_counted:
        return reservation.used()
    if not has_begun:
        return min(MIN_TOKENS, reservation.num_tokens)
    return min(max(MIN_TOKENS, reservation.claim.prompt), reservation.num_tokens)


def claim_of(
    request: Request, per_minute: int, *, has_limit: bool, num_choices: int, counts_prompt: bool
) -> Claim:
    """Return what a request may use; it must then get the token limit `answer`.

    `has_limit` is True if the client named a token limit. The answer has `num_choices` choices,
    and `counts_prompt` is False for all of a prompt's choices but one.
    """
    prompt = estimated_prompt_tokens(request)
    answer = request.max_tokens
    if not has_limit or prompt + num_choices * answer > per_minute:
        answer = min(answer, max(1, int(per_minute * SHARE / num_choices)))
    return Claim(prompt if counts_prompt else 0, answer)


def estimated_prompt_tokens(request: Request) -> int:
    """Return a guess of the prompt's tokens, before the engine has counted them."""
    if request.prompt_ids is not None:
        return len(request.prompt_ids)
    messages = request.messages or ()
    texts = [request.prompt or "", request.tools or ""]
    if request.gap is not None:
        texts += request.gap.texts()
    for message in messages:
        texts += (message.content, message.reasoning)
        texts += (call.arguments for call in message.tool_calls)
    num_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
    return 1 + num_bytes // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE * len(messages)
