"""Looks at all replicas twenty times a second: who has a lease, and which logs have no owner."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from penstock.store.protocol import StoreError, StoreWatcher
from penstock.store.redis.client import Client
from penstock.store.redis.layout import LEASE_MS, LEASES, OPEN, REPLICAS
from penstock.store.redis.scripts import SURVEY
from penstock.store.redis.tenure import Tenure, now

SURVEY_S = 0.05
REPEAT_S = 0.5
"""How often orphans that nobody claims are reported again."""

LATE_S = 0.5
"""A look that takes longer says nothing about leases: while the store was away, they all lapsed."""

Orphans = Sequence[tuple[str, int]]


class Survey:
    """What was last seen of the other replicas."""

    def __init__(self, client: Client, tenure: Tenure, reconnected_at: Callable[[], float]) -> None:
        """`reconnected_at` returns when this replica last reached the store again."""
        self.num_others = 0
        self._client = client
        self._tenure = tenure
        self._reconnected_at = reconnected_at
        self._trusted_after = 0.0
        self._reported: Orphans = ()
        self._reported_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self, watcher: StoreWatcher) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._look_again_and_again(watcher))

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look_again_and_again(self, watcher: StoreWatcher) -> None:
        while True:
            asked_at = now()
            try:
                found = await self._client.run(SURVEY, [REPLICAS], LEASES, OPEN)
            except StoreError:
                found = None
            if found is None or now() - asked_at > LATE_S:
                self._trusted_after = now() + LEASE_MS / 1000
            if found is not None:
                self._take(found, watcher)
            await asyncio.sleep(SURVEY_S)

    def _take(self, found: list[list[Any]], watcher: StoreWatcher) -> None:
        alive = {each[0].decode().partition(".")[0] for each in found if len(each) == 1}
        self.num_others = len(alive - {self._tenure.replica})
        orphans = sorted(
            (log[0].decode(), int(log[1]))
            for name, *logs in found
            for log in _pairs(logs)
            if name.decode() != self._tenure.name
        )
        if not orphans or not self._trusts():
            self._reported = ()
        elif orphans != self._reported or now() - self._reported_at > REPEAT_S:
            self._reported, self._reported_at = orphans, now()
            watcher.logs_orphaned(orphans)

    def _trusts(self) -> bool:
        """Return False for the time of a lease after the store was away.

        While it was away nobody could renew a lease, so the owners come first.
        """
        trusted_after = max(self._trusted_after, self._reconnected_at() + LEASE_MS / 1000)
        return now() > trusted_after and not self._tenure.is_given_back


def _pairs(logs: list[list[bytes]]) -> list[tuple[bytes, bytes]]:
    flat = logs[0] if logs else []
    return list(zip(flat[::2], flat[1::2], strict=True))
