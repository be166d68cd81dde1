"""This replica's lease: one tenure after the other, each one uninterrupted lease.

A key that expires holds the lease. If it has expired, or the store was emptied, a new tenure begins
under a new name. So a script that finds the lease of a tenure knows that it has never lapsed.
"""

import secrets
import time
from collections.abc import Iterable

from penstock.errors import StartError
from penstock.store.redis.layout import (
    FORMAT,
    FORMAT_KEY,
    LEASE_MS,
    LEASES,
    LIVES,
    OPEN,
    REPLICAS,
    SAFETY_MS,
    command,
)
from penstock.store.redis.line import Line, Reply, ReplyError
from penstock.store.redis.log import RedisLog
from penstock.store.redis.scripts import BEGIN

UNSHARED = b"-"
"""The value of a lease whose replica has shared nothing; a shared value has "=" before it."""

# Linux counts the time in which the machine sleeps in this clock only.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return the seconds of a clock that never stands still or jumps."""
    return time.clock_gettime(_CLOCK)


class Tenure:
    """The lease as this replica knows it."""

    def __init__(self) -> None:
        self.replica = secrets.token_hex(12)
        self.shared = UNSHARED
        self.renewed_at = -float("inf")
        """When the last renewal that succeeded was sent: the lease holds at least LEASE_MS more."""
        self.is_given_back = False
        self._number = 0
        self._birth = b""
        self._must_begin = True
        self._earlier: list[str] = []  # what they own comes along
        self._abandoned: list[str] = []  # what they own becomes orphans

    @property
    def name(self) -> str:
        """The name of the current tenure."""
        return f"{self.replica}.{self._number}"

    @property
    def lease(self) -> str:
        """The key of the current lease."""
        return LEASES + self.name

    def renewal(self) -> bytes:
        """Return the command that renews the lease; it replies 0 if the lease has lapsed.

        It also works in a store that is full, unlike SET. A lease that was given back stays so:
        then the command only asks for a sign of life.
        """
        if self.is_given_back:
            return command("PING")
        return command("PEXPIRE", self.lease, LEASE_MS)

    def abandon(self) -> None:
        """Leave all logs as orphans: the next `secure` begins a new tenure without them."""
        self._abandoned += [*self._earlier, self.name]
        self._earlier.clear()
        self._number += 1
        self._must_begin = True

    async def secure(self, line: Line, logs: Iterable[RedisLog]) -> bool:
        """Renew the lease on a new connection, or begin a new tenure.

        Returns False if `logs` are lost, because the store was emptied and others may have claimed
        them before. Raises ReplyError, ConnectionError, StartError (another format).
        """
        if self.is_given_back:
            return True
        sent_at = now()
        held, marker = checked(await line.ask([self.renewal(), command("GET", FORMAT_KEY)]))
        was_emptied = self._birth != b"" and marker != self._birth
        if was_emptied or not self._birth:
            self._birth = await _read_birth(line)
        if held and not was_emptied and not self._must_begin:
            # Prove that the store takes writes as well.
            renew = command("SET", self.lease, self.shared, "XX", "PX", LEASE_MS)
            checked(await line.ask([renew]))
            self.renewed_at = sent_at
            return True
        # Nobody can claim a log of a store that was emptied, so only the time before matters.
        keeps = not was_emptied or sent_at - self.renewed_at <= LEASE_MS / 1000
        await self._begin(line, logs if was_emptied and keeps else ())
        self.renewed_at = sent_at
        return keeps

    async def _begin(self, line: Line, logs: Iterable[RedisLog]) -> None:
        if not self._must_begin:
            self._earlier.append(self.name)
            self._number += 1
        # If no reply comes, the store may know this name, so the next attempt uses another one.
        self._must_begin = False
        abandoned = [command("DEL", LEASES + each) for each in self._abandoned]
        pairs = [word for log in logs for word in (log.stream_id, log.epoch)]
        begin = BEGIN.call(
            [REPLICAS, self.lease, OPEN + self.name, LIVES],
            *(self.name, LEASE_MS, self.shared, SAFETY_MS, LEASES, OPEN),
            *(len(self._earlier), *self._earlier, *pairs),
        )
        checked(await line.ask([*abandoned, begin]))
        self._earlier.clear()
        self._abandoned.clear()


def checked(replies: list[Reply]) -> list[Reply]:
    """Return the replies. Raises the first ReplyError among them."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return replies


async def _read_birth(line: Line) -> bytes:
    """Return the mark of this store's contents; set it if the store is empty."""
    mine = f"{FORMAT} {secrets.token_hex(8)}".encode()
    (theirs,) = checked(await line.ask([command("SET", FORMAT_KEY, mine, "NX", "GET")]))
    mark: bytes = theirs or mine
    if mark.partition(b" ")[0] != FORMAT.encode():
        raise StartError(
            "The store holds logs in a format that this version of Penstock does not know.",
            "Use the version of Penstock that wrote them, or another database.",
        )
    return mark
