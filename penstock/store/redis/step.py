"""One step of the owning side: entries that were appended together, and what follows."""

from collections.abc import Callable
from typing import Protocol

from penstock.store.redis.line import Reply
from penstock.store.redis.log import RedisLog
from penstock.store.redis.tenure import now


class Owner(Protocol):
    """What a step reports to."""

    def advance(self) -> None:
        """Steps may be complete."""

    def take_odd(self, step: "Step", log: RedisLog, reply: Reply) -> None:
        """An entry of the log was not simply added."""


class Step:
    """The entries of one `append`, by their logs. It is a batch of the line (`line.Batch`).

    `num_left` counts the replies to come, `num_held` the questions that its replies have raised.
    """

    __slots__ = (
        "_owner",
        "born",
        "ends",
        "logs",
        "num_held",
        "num_left",
        "serial",
        "size",
        "then",
    )

    takes_all = False  # the reply to an entry that was added is its id, as bytes

    def __init__(
        self,
        owner: Owner,
        logs: list[RedisLog],
        then: Callable[[], None] = lambda: None,
        ends: RedisLog | None = None,
    ) -> None:
        self.logs = logs
        self.then = then
        self.ends = ends
        self.num_left = len(logs)
        self.num_held = 0
        self.serial = 0
        self.size = 0
        self.born = now()
        self._owner = owner

    def take(self, reply: Reply) -> None:
        """Take a reply that is not an id."""
        self._owner.take_odd(self, self.logs[-1 - self.num_left], reply)

    def done(self) -> None:
        """All replies have come."""
        self._owner.advance()
