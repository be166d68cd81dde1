"""An upstream's health: whether it gets requests, and when it is looked at again.

In: failures and successes, with the time. Out: the state. Pure: the caller brings the clock, and
the chance for the jitter.

An upstream that fails gets nothing for a pause, which doubles with each failure in a row. Then it
is looked at, and if it answers, one request tries it: only that request's success makes it well.
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
        self._has_trial = False

    @property
    def takes_requests(self) -> bool:
        """Return True if the upstream may get a request now."""
        return self.state == "well" or (self.state == "trial" and not self._has_trial)

    def begin(self) -> None:
        """Note that the upstream gets a request."""
        self._has_trial = self.state == "trial"

    def drop(self) -> None:
        """Note that a request has ended, and that its end says nothing."""
        self._has_trial = False

    def succeed(self) -> None:
        """Note that a request has got on."""
        self._has_trial = False
        if self.state == "trial":
            self.state = "well"
        if self.state == "well":
            self.num_failures = 0

    def fail(self, now: float, chance: float) -> None:
        """Note a failure; `chance` is from 0 to 1. Failures of requests that began before the last
        one, while the upstream is already sick, do not make the pause longer."""
        self._has_trial = False
        if self.state == "sick" and now < self.look_at:
            return
        self.num_failures += 1
        pause = min(FIRST_PAUSE_S * 2 ** min(self.num_failures - 1, 16), MAX_PAUSE_S)
        self.state = "sick"
        self.look_at = now + pause * (1 + JITTER * chance)

    def answer(self) -> None:
        """Note that a sick upstream has answered when it was looked at."""
        if self.state == "sick":
            self.state = "trial" if self.num_failures else "well"
            self._has_trial = False
