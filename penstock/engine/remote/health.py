"""An upstream's health: whether it gets requests, and when it is looked at again.

In: failures and successes, with the time. Out: the state. Pure: the caller brings the clock, and
the chance for the jitter.

An upstream that fails gets nothing for a pause, which doubles with each failure in a row. Then it
is looked at, and if it answers, one request tries it: only that request's success makes it well.
Failed looks have shorter pauses: they cost no request, and clients may be waiting for the upstream.
"""

from typing import Literal

FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 30.0
JITTER = 0.5

State = Literal["sick", "trial", "well"]
"""A "sick" upstream gets nothing, one on "trial" gets one request, a "well" one gets any number."""


class Health:
    """The health of one upstream. It is sick until it is looked at for the first time."""

    def __init__(self) -> None:
        self.state: State = "sick"
        self.num_failures = 0
        """How many failures there were in a row."""
        self.look_at = 0.0
        """When a sick upstream is to be looked at again."""
        self._trial: object = None
        """The request that tries the upstream; None if there is none."""

    @property
    def takes_requests(self) -> bool:
        """Return True if the upstream may get a request now."""
        return self.state == "well" or (self.state == "trial" and self._trial is None)

    def begin(self, request: object) -> None:
        """Note that the upstream gets a request. Pass the same `request` to the other methods."""
        if self.state == "trial":
            self._trial = request

    def drop(self, request: object) -> None:
        """Note that a request has ended without a sign that the upstream is well or ill."""
        if self._trial is request:
            self._trial = None

    def succeed(self, request: object) -> None:
        """Note that a request has got on."""
        if self._trial is request:
            self._trial = None
            self.state = "well"
        if self.state == "well":
            self.num_failures = 0

    def fail(
        self, now: float, chance: float, longest: float = MAX_PAUSE_S, asked: float = 0.0
    ) -> None:
        """Note a failure; `chance` is from 0 to 1.

        Failures of requests that began before the last one, while the upstream is already sick, do
        not make the pause longer. Without its jitter, it is at most `longest` seconds, and at least
        the `asked` seconds for which the upstream asks, up to MAX_PAUSE_S.
        """
        self._trial = None
        if self.state == "sick" and now < self.look_at:
            return
        self.num_failures += 1
        pause = min(FIRST_PAUSE_S * 2 ** min(self.num_failures - 1, 16), longest)
        pause = max(pause, min(asked, MAX_PAUSE_S))
        self.state = "sick"
        self.look_at = now + pause * (1 + JITTER * chance)

    def answer(self) -> None:
        """Note that a sick upstream has answered when it was looked at."""
        if self.state == "sick":
            self.state = "trial" if self.num_failures else "well"
