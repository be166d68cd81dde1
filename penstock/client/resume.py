"""Resuming a cut stream: the next step after each byte, cut and status.

In: the bytes, the end or the refusal of each connection. Out: one step at a time: read, wait, or
reconnect after an event. This module knows no sockets, no httpx, and not whether the caller is sync
or async. The caller supplies the clock and the random numbers.
"""

import random
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import msgspec

from .answer import StreamedAnswer
from .errors import PenstockError, RefusedError

RESUME_TIMEOUT_S = 50.0
"""Seconds without a connection; less than the 60 s that a server keeps a stream without readers."""
ATTEMPT_S = 10.0
"""Seconds that an attempt may take at most."""
MIN_ATTEMPT_S = 1.0

RETRIED = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
"""Statuses to retry, as well as every 5xx."""
FORGOTTEN = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
"""Statuses of a stream that the server no longer has."""


class Backoff(msgspec.Struct, frozen=True):
    """The waits between attempts to resume a stream.

    The wait before attempt n (from 0) is `first * factor**n` seconds, at most `max` seconds, times
    a random number from 0.5 to 1. The random number keeps the many clients of a restarted server
    from coming back at the same moment.
    """

    first: float = 0.25
    """Seconds before the first attempt, unless the server sent `retry`."""
    factor: float = 2.0
    """The growth of the wait from one attempt to the next."""
    max: float = 5.0
    """The longest wait, in seconds."""

    def wait_s(self, num_attempts: int, chance: float, first: float | None = None) -> float:
        """Return the seconds to wait after `num_attempts` attempts.

        `chance` is a random number from 0 to 1. `first` replaces the field `first` if it is given.
        """
        exponent = min(num_attempts, 64)  # a float overflows beyond this
        longest = min(self.max, (first or self.first) * self.factor**exponent)
        return longest * (1 + chance) / 2


class ResumePolicy(msgspec.Struct, frozen=True):
    """How long and how often to try to resume a cut stream."""

    timeout_s: float = RESUME_TIMEOUT_S
    """Seconds that the stream may be without a connection, from one event to the next."""
    backoff: Backoff = Backoff()
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random


class Read(msgspec.Struct, frozen=True):
    """A step: read from the connection, then call `feed` with the bytes or `cut` at its end."""


class Wait(msgspec.Struct, frozen=True):
    """A step: wait for some seconds."""

    seconds: float


class Reconnect(msgspec.Struct, frozen=True):
    """A step: request the events after `after`, then call `resumed`, `refused` or `cut`."""

    after: int | None
    """The number of the last event that arrived; None requests all events."""
    timeout_s: float
    """Seconds to wait for the response's head."""
    status_events: bool = False
    """True to be told what happens to the stream."""


Step = Read | Wait | Reconnect


class Reading:
    """The reading of one answer over one or several connections.

    While `step` returns a step, take it, and report the result with `feed`, `cut`, `resumed` or
    `refused`. When `step` returns None, the answer has a text or an error to take.

    Without a `policy` a cut ends the answer. `is_own` is False for a stream that another client
    opened. `on_cut` is called with the reason of a cut, and `on_resume` after a resumption.
    """

    def __init__(
        self,
        answer: StreamedAnswer,
        policy: ResumePolicy | None = None,
        *,
        is_own: bool = True,
        on_cut: Callable[[str], object] | None = None,
        on_resume: Callable[[], object] | None = None,
    ) -> None:
        self.answer = answer
        self.id: str | None = None
        """The server's id of this stream; None before the stream begins."""
        self.num_resumes = 0
        """The number of times that the stream was resumed."""
        self._policy = policy
        self._is_own = is_own
        self._on_cut = on_cut
        self._on_resume = on_resume
        self._cut: str | None = None  # the reason, while there is no connection
        self._lost_at = 0.0
        self._lost_before_s = 0.0  # since the last event, without the current cut
        self._num_attempts = 0  # since the last event
        self._wait_s: float | None = None
        self._has_left = False

    @property
    def is_resumable(self) -> bool:
        """True if the stream can continue after a cut."""
        return self._policy is not None and self.id is not None

    def step(self) -> Step | None:
        """Return the next step, or None if the answer has a text or an error to take."""
        if not self.answer.is_waiting:
            return None
        if self._cut is None:
            return Read()
        if self._wait_s is not None:
            wait, self._wait_s = Wait(self._wait_s), None
            return wait
        attempt_s = min(max(self._left_s(), MIN_ATTEMPT_S), ATTEMPT_S)
        return Reconnect(self.answer.last_received, attempt_s, self.answer.wants_status)

    def feed(self, piece: bytes) -> None:
        """Pass bytes of the connection to the answer."""
        before = self.answer.last_received
        self.answer.feed(piece)
        if self.answer.last_received != before:
            self._num_attempts = 0
            self._lost_before_s = 0.0

    def cut(self, why: str) -> None:
        """Report that the connection ended, or that no connection could be made."""
        if self.answer.is_over:
            return
        if self._policy is None or self.id is None:
            self.answer.end(why)
            return
        if self._cut is None:
            self.answer.interrupt()
            self._cut, self._lost_at = why, self._policy.clock()
            if self._on_cut is not None:
                self._on_cut(why)
        self._retry(why)

    def resumed(self) -> None:
        """Report that the server continues the stream on a new connection."""
        self._lost_before_s += self._lost_s()
        self._cut = None
        self.num_resumes += 1
        if self._on_resume is not None:
            self._on_resume()

    def refused(self, error: PenstockError, retry_after: str | None = None) -> None:
        """Report that the server answered with an error instead of the stream.

        `retry_after` is the value of the header `Retry-After`, if the response has it.
        """
        status = error.status if isinstance(error, RefusedError) else HTTPStatus.OK
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in RETRIED:
            self._retry(str(error), retry_after_s(retry_after, time.time()))
        elif status in FORGOTTEN:
            self._give_up(f"the rest is lost because the server no longer has it: {error}", error)
        else:
            self._give_up(f"the stream could not be resumed: {error}", error)

    def leave(self) -> bool:
        """Stop reading. Return True if the caller must now cancel the stream on the server.

        That is so at most once, and only for a stream that this client opened and that would
        otherwise go on without a connection.
        """
        is_running = not (self._has_left or self.answer.has_ended)
        self._has_left = True
        return is_running and self._is_own and self.is_resumable

    def _retry(self, why: str, at_least_s: float = 0.0) -> None:
        assert self._policy is not None
        left = self._left_s()
        if left <= 0 or at_least_s > left:
            reason = "" if why == self._cut else f": {why}"
            self._give_up(
                f"the stream could not be resumed in {self._policy.timeout_s:g} s{reason}"
            )
            return
        wait = self._policy.backoff.wait_s(
            self._num_attempts, self._policy.chance(), self.answer.retry_s
        )
        self._wait_s = max(min(wait, left), at_least_s)
        self._num_attempts += 1

    def _give_up(self, why: str, cause: PenstockError | None = None) -> None:
        self._has_left = True  # the server is unreachable, or has no stream to cancel
        self.answer.end(f"{self._cut}; {why}", cause)

    def _left_s(self) -> float:
        assert self._policy is not None
        return self._policy.timeout_s - self._lost_before_s - self._lost_s()

    def _lost_s(self) -> float:
        assert self._policy is not None
        return self._policy.clock() - self._lost_at


def retry_after_s(value: str | None, now: float) -> float:
    """Return the seconds of a `Retry-After`, which is a number or a date (RFC 9110, 10.2.3).

    `now` is the current Unix time. The result is 0 for a missing or invalid value.
    """
    if value is None:
        return 0.0
    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0
