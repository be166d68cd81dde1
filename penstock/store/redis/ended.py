"""Ended logs that are kept for a while, because the store may still lose what it has confirmed.

Redis keeps writes back for up to 2 s while its disk is busy, and gives them to the disk once a
second; a failover may lose some, too. So an owner forgets an ended log only when the store has had
its end for `LOSABLE_S`. If the end is missing after a reconnect, `recovery.plan` writes it again.
Otherwise the stream would go on without an end, or another replica would continue it.
"""

from collections import deque

from penstock.store.redis.log import RedisLog
from penstock.store.redis.tenure import now

LOSABLE_S = 4.0
"""For so long, in seconds, a store may lose what it has confirmed."""

MAX_BYTES = 16 * 1024 * 1024
"""The most that all kept logs take; beyond it the oldest goes first."""


class EndedLogs:
    """The last ones of `logs` that have ended."""

    def __init__(self, logs: dict[str, RedisLog]) -> None:
        self._logs = logs
        self._kept: deque[tuple[float, RedisLog, int]] = deque()
        """Since when the store has their ends, the logs, and their memory in bytes."""
        self._num_bytes = 0

    def keep(self, log: RedisLog) -> None:
        """Keep a log whose end the store has just confirmed."""
        log.is_over = True
        num_bytes = log.num_bytes()
        self._kept.append((now(), log, num_bytes))
        self._num_bytes += num_bytes
        while self._num_bytes > MAX_BYTES:
            self._forget_oldest()

    def keep_anew(self) -> None:
        """Count the time from now on: this connection may have just written their ends."""
        self._kept = deque((now(), log, num_bytes) for _, log, num_bytes in self._kept)

    def store_answered(self, asked_at: float) -> None:
        """Forget the logs that the store had for long enough when it was asked."""
        while self._kept and self._kept[0][0] < asked_at - LOSABLE_S:
            self._forget_oldest()

    def clear(self) -> None:
        """Forget all of them."""
        while self._kept:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, log, num_bytes = self._kept.popleft()
        self._num_bytes -= num_bytes
        if self._logs.get(log.stream_id) is log:
            del self._logs[log.stream_id]
        log.forget()
