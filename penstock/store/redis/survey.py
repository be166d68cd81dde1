"""Looks at all replicas twenty times a second: who has a lease, and which logs have no owner."""

import asyncio
import math
from collections.abc import Callable

from penstock.store.protocol import StoreError, StoreWatcher
from penstock.store.redis.client import Client
from penstock.store.redis.layout import LEASE_MS, LEASES, LIVES, OPEN, REPLICAS
from penstock.store.redis.loops import Loop
from penstock.store.redis.scripts import SURVEY
from penstock.store.redis.tenure import Tenure, now

SURVEY_S = 0.05
REPEAT_S = 0.5
"""How often orphans that nobody claims are reported again."""

LATE_S = 1.0
"""A look that takes longer says nothing about leases: if the store was away, they may all have
lapsed. In less time none does, because leases are renewed every 0.5 s.

Nor does a look that comes so late after the last one, or in so much time after it: this process was
held up, perhaps with its whole machine, and the owners there renew their leases now, too."""


class Survey:
    """What was last seen of the other replicas."""

    def __init__(self, client: Client, tenure: Tenure, reconnected_at: Callable[[], float]) -> None:
        """`reconnected_at` returns when this replica last reached the store again; infinite while
        it does not."""
        self.unsettled: dict[str, int] = {}
        """Logs, with their epochs, whose claim by this replica has failed halfway."""
        self._client = client
        self._tenure = tenure
        self._reconnected_at = reconnected_at
        self._trusted_after = 0.0
        self._looked_at = math.inf
        self._held_up_until = 0.0
        self._reported: dict[str, int] = {}
        self._reported_at = 0.0
        self._loop: Loop | None = None

    def start(self, watcher: StoreWatcher) -> None:
        """Begin to look."""
        self._loop = Loop("log survey", lambda: self._look(watcher), SURVEY_S)

    async def stop(self) -> None:
        """Look no more."""
        if self._loop is not None:
            await self._loop.stop()

    async def _look(self, watcher: StoreWatcher) -> None:
        asked_at = now()
        if asked_at - self._looked_at > LATE_S:
            self._held_up_until = asked_at + LATE_S
        try:
            found = await self._client.run(SURVEY, [REPLICAS, LIVES], LEASES, OPEN)
        except StoreError:
            found = None
        if found is None or now() - asked_at > LATE_S:
            self._trusted_after = now() + LEASE_MS / 1000
        if found is not None:
            await self._take(found, watcher)
        self._looked_at = now()

    async def _take(self, found: list[tuple[bytes, int]], watcher: StoreWatcher) -> None:
        """Take the tenures, each with the number of logs that it left, or -1 if it has a lease."""
        numbers = {name.decode(): num for name, num in found}
        left = {n: num for n, num in numbers.items() if num > 0 and n != self._tenure.name}
        if not (left or self.unsettled) or not self._trusts():
            self._reported = {}
        elif left != self._reported or now() - self._reported_at > REPEAT_S:
            self._reported, self._reported_at = left, now()
            orphans = [each for name in left for each in await self._logs_of(name)]
            orphans += self.unsettled.items()
            if orphans:
                watcher.logs_orphaned(orphans)

    async def _logs_of(self, tenure: str) -> list[tuple[str, int]]:
        try:
            logs: dict[bytes, bytes] = await self._client.call("HGETALL", OPEN + tenure)
        except StoreError:
            return []
        return [(stream_id.decode(), int(epoch)) for stream_id, epoch in logs.items()]

    def _trusts(self) -> bool:
        has_looked_on = now() > self._held_up_until
        return has_looked_on and self._owners_had_their_time() and not self._tenure.is_given_back

    def _owners_had_their_time(self) -> bool:
        """Return False for the time of a lease after the store was away.

        While it was away nobody could renew a lease, and it may have lost what it confirmed: its
        owner may have more of a log. So the owners come first.
        """
        return now() > max(self._trusted_after, self._reconnected_at() + LEASE_MS / 1000)

    async def until_owners_had_their_time(self) -> None:
        """Wait after the store was away, so that owners can write what it has lost.

        Raises StoreError if it is away.
        """
        while not self._owners_had_their_time():
            await self._client.call("PING")
            await asyncio.sleep(SURVEY_S)
