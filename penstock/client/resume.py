"""A stream that holds: what to do after each byte, cut and status (pure).

In: what each connection brought, which is bytes, its end, or a refusal. Out: one step at a time, to
read on, to wait, or to ask again from an event. Not known here: sockets, httpx, sync or async; time
and chance are given.
"""

import random
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import msgspec

from penstock.client.answer import Answer
from penstock.client.errors import PenstockError, RefusedError

RESUME_TIMEOUT_S = 50.0
"""Less than the 60 s for which a server lets a stream go on without readers."""
ATTEMPT_S = 10.0
MIN_ATTEMPT_S = 1.0

PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
"""Beside every 5xx: what may be answered otherwise a moment later."""
FORGOTTEN = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait before each attempt: between half of it and all of it, by chance.

    The chance keeps a thousand clients of one server that was restarted from coming back at once.
    """

    first: float = 0.25
    """Seconds before the first attempt; the server may name another number of them."""
    factor: float = 2.0
    max: float = 5.0

    def wait_s(self, num_attempts: int, chance: float, first: float | None = None) -> float:
        """Seconds to wait after so many attempts; `chance` is from 0 to 1."""
        exponent = min(num_attempts, 64)  # a float ends somewhere
        longest = min(self.max, (first or self.first) * self.factor**exponent)
        return longest * (1 + chance) / 2


class Patience(msgspec.Struct, frozen=True):
    """How a cut stream is resumed."""

    timeout_s: float = RESUME_TIMEOUT_S
    """How long it may be without a connection, between one event and the next."""
    backoff: Backoff = Backoff()
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random


class Read(msgspec.Struct, frozen=True):
    """Read on: the bytes are to `feed`, the end of the connection is a `cut`."""


class Wait(msgspec.Struct, frozen=True):
    """Wait so long."""

    seconds: float


class Ask(msgspec.Struct, frozen=True):
    """Ask for the events after this one, or for all, and wait for a head no longer than this."""

    after: int | None
    timeout_s: float


Step = Read | Wait | Ask


class Reading:
    """One answer, read over as many connections as it takes.

    While there is a `step`, take it and tell what came of it: `feed`, `cut`, `resumed` or
    `refused`. Then the answer has something to take, if only its error.
    """

    def __init__(
        self,
        answer: Answer,
        patience: Patience | None = None,
        *,
        is_own: bool = True,
        on_cut: Callable[[str], object] | None = None,
        on_resume: Callable[[], object] | None = None,
    ) -> None:
        self.answer = answer
        self.id: str | None = None
        """The server's name for this stream, known once it has begun."""
        self.num_resumes = 0
        self._patience = patience  # None: a cut is the end
        self._is_own = is_own
        self._on_cut = on_cut
        self._on_resume = on_resume
        self._cut: str | None = None  # why there is no connection now
        self._lost_at = 0.0
        self._lost_before_s = 0.0  # without a connection, since the last event, before this cut
        self._num_attempts = 0  # since the last event
        self._wait_s: float | None = None
        self._is_done_with = False

    @property
    def is_resumable(self) -> bool:
        """Whether a cut is not the end."""
        return self._patience is not None and self.id is not None

    def step(self) -> Step | None:
        """What to do now; None where the answer has something to take."""
        if not self.answer.is_waiting:
            return None
        if self._cut is None:
            return Read()
        if self._wait_s is not None:
            wait, self._wait_s = Wait(self._wait_s), None
            return wait
        attempt_s = min(max(self._left_s(), MIN_ATTEMPT_S), ATTEMPT_S)
        return Ask(self.answer.last_received, attempt_s)

    def feed(self, piece: bytes) -> None:
        """Bytes came."""
        before = self.answer.last_received
        self.answer.feed(piece)
        if self.answer.last_received != before:
            self._num_attempts = 0
            self._lost_before_s = 0.0

    def cut(self, why: str) -> None:
        """The connection ended, or could not be made."""
        if self.answer.is_over:
            return
        if self._patience is None or self.id is None:
            self.answer.end(why)
            return
        if self._cut is None:
            self.answer.interrupt()
            self._cut, self._lost_at = why, self._patience.clock()
            if self._on_cut is not None:
                self._on_cut(why)
        self._ask_again(why)

    def resumed(self) -> None:
        """The server goes on with the stream on a new connection."""
        self._lost_before_s += self._lost_s()
        self._cut = None
        self.num_resumes += 1
        if self._on_resume is not None:
            self._on_resume()

    def refused(self, error: PenstockError, retry_after: str | None = None) -> None:
        """The server answered, but not with the stream."""
        status = error.status if isinstance(error, RefusedError) else HTTPStatus.OK
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in PASSING:
            self._ask_again(str(error), retry_after_s(retry_after, time.time()))
        elif status in FORGOTTEN:
            self._give_up(f"the rest is lost, for the server no longer has it: {error}", error)
        else:
            self._give_up(f"it could not be resumed: {error}", error)

    def leave(self) -> bool:
        """Nobody will read on. Whether the server must be told: once, and where it goes on alone.

        A stream that somebody else opened is theirs, and one that cannot be resumed ends with its
        connection.
        """
        is_news = not (self._is_done_with or self.answer.has_ended)
        self._is_done_with = True
        return is_news and self._is_own and self.is_resumable

    def _ask_again(self, why: str, at_least_s: float = 0.0) -> None:
        assert self._patience is not None
        left = self._left_s()
        if left <= 0 or at_least_s > left:
            reason = "" if why == self._cut else f": {why}"
            self._give_up(f"it could not be resumed in {self._patience.timeout_s:g} s{reason}")
            return
        wait = self._patience.backoff.wait_s(
            self._num_attempts, self._patience.chance(), self.answer.retry_s
        )
        self._wait_s = max(min(wait, left), at_least_s)
        self._num_attempts += 1

    def _give_up(self, why: str, cause: PenstockError | None = None) -> None:
        self._is_done_with = True  # the server does not hear us, or has nothing to end
        self.answer.end(f"{self._cut}; {why}", cause)

    def _left_s(self) -> float:
        assert self._patience is not None
        return self._patience.timeout_s - self._lost_before_s - self._lost_s()

    def _lost_s(self) -> float:
        assert self._patience is not None
        return self._patience.clock() - self._lost_at


def retry_after_s(value: str | None, now: float) -> float:
    """Seconds that a `Retry-After` asks for: a number of them, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return 0.0
    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0
