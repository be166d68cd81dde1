"""Sending a request again: whether the server could take it the next time, and when.

In: the error of an attempt. Out: seconds to wait, or the error itself. This module knows no
sockets, no httpx, and not whether the caller is sync or async.

Only two errors allow a new attempt, because after both the server has done nothing: no connection
could be made, or the server refused the request and said that it is safe to repeat it.
"""

import random
from collections.abc import Callable

import msgspec

from .errors import PenstockError, RefusedError, ServerUnreachableError
from .resume import Backoff

MAX_RETRY_AFTER_S = 60.0
"""The longest `Retry-After` that a client waits for. A longer one is an error to the caller."""


class Retries(msgspec.Struct, frozen=True):
    """How often to send a request again, and the waits between the attempts."""

    number: int = 0
    backoff: Backoff = Backoff()
    chance: Callable[[], float] = random.random


class Attempts:
    """The attempts to send one request."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._num_failed = 0

    def wait_s_after(self, error: PenstockError) -> float:
        """Return the seconds to wait before the next attempt. Raises `error` if there is none."""
        at_least_s = _retry_after_s(error)
        if at_least_s is None or self._num_failed >= self._retries.number:
            raise error
        wait_s = self._retries.backoff.wait_s(self._num_failed, self._retries.chance())
        self._num_failed += 1
        return max(wait_s, at_least_s)


def _retry_after_s(error: PenstockError) -> float | None:
    """Return the seconds that the server asked to wait, or None if a retry is not allowed."""
    if isinstance(error, ServerUnreachableError):
        return 0.0
    if not isinstance(error, RefusedError) or not error.retry_safe:
        return None
    at_least_s = error.retry_after or 0.0
    return at_least_s if at_least_s <= MAX_RETRY_AFTER_S else None
