"""After a connection was lost: find out what the store has, and plan what to write again.

A command whose reply was lost may have been carried out, or not. The store may have lost its tail
(a failover), a key (an eviction), or everything. So nothing is assumed: the store says for each log
what it has. Ids make writing idempotent.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from penstock.store.redis.layout import OPEN, SAFETY_MS
from penstock.store.redis.line import Line
from penstock.store.redis.log import RedisLog
from penstock.store.redis.scripts import AGAIN, GONE, LOST, OF_THE_LINE, REVIVE, SETTLE
from penstock.store.redis.step import Step
from penstock.store.redis.tenure import Tenure, checked

Stored = dict[RedisLog, int]
"""For each log the number of the last entry of its epoch that the store has, or -1."""

CHUNK = 200
"""Logs to ask for at once: other clients of the store get their turn in between."""


def num_unacknowledged(steps: Iterable[Step]) -> Counter[RedisLog]:
    """Count the entries of each log that are not known to be stored."""
    return Counter(log for step in steps for log in step.logs)


async def recover(
    line: Line,
    tenure: Tenure,
    logs: Mapping[str, RedisLog],
    steps: Iterable[Step],
    lose: Callable[[RedisLog], None],
) -> Stored:
    """Prepare a new connection: load scripts, renew the lease, and ask for what is stored.

    Calls `lose` for each log that has another owner. Raises ReplyError, ConnectionError,
    TimeoutError, StartError.
    """
    checked(await line.ask([script.load() for script in OF_THE_LINE]))
    if not await tenure.secure(line, logs.values()):
        for log in list(logs.values()):
            lose(log)
    num_open = num_unacknowledged(steps)
    acked = {log: len(log.entries) - num_open[log] - 1 for log in logs.values()}
    stored: Stored = {}
    rest = iter(list(acked.items()))
    while chunk := list(islice(rest, CHUNK)):
        await _settle(line, tenure, dict(chunk), stored, lose)
    return stored


async def _settle(
    line: Line,
    tenure: Tenure,
    acked: Stored,
    stored: Stored,
    lose: Callable[[RedisLog], None],
) -> None:
    asks = [
        SETTLE.call(
            [log.key, OPEN + tenure.name],
            *(log.stream_id, log.epoch, number, log.last_number, log.before),
        )
        for log, number in acked.items()
    ]
    for (log, number), reply in zip(acked.items(), checked(await line.ask(asks)), strict=True):
        if log.is_lost:
            continue
        if reply == GONE and (number >= 0 or log.epoch > 1):
            reply = await _revive(line, tenure, log, number)
        if reply == LOST:
            lose(log)
        else:
            stored[log] = max(reply, -1)


async def _revive(line: Line, tenure: Tenure, log: RedisLog, number: int) -> int:
    """Write a log again whose key is gone; return the number of its last entry, or LOST.

    The last entry of an ended log is left to `plan`, which also says how long the log stays.
    """
    number = min(number, log.last_number - 1)
    revive = REVIVE.call(
        [log.key, OPEN + tenure.name, tenure.lease],
        *(log.stream_id, log.epoch, SAFETY_MS),
        *log.written(number),
    )
    (reply,) = checked(await line.ask([revive]))
    if reply == AGAIN:
        raise ConnectionResetError("a late command of an earlier connection was in between")
    return LOST if reply == LOST else number


def plan(
    steps: Iterable[Step],
    repair: Step,
    stored: Stored,
    logs: Mapping[str, RedisLog],
    tenure: str,
) -> Iterator[tuple[Step, bytes]]:
    """Return what to write again: a repair of lost tails, then what each step still lacks.

    `repair` is the first of the steps, and empty. The steps keep the entries that are written.
    """
    num_open = num_unacknowledged(steps)
    following: dict[RedisLog, int] = {}  # the number of a log's next entry among the steps
    parts: list[bytes] = []
    for log in logs.values():
        acked = following[log] = len(log.entries) - num_open[log] - 1
        for number in range(stored.setdefault(log, acked) + 1, acked + 1):
            repair.logs.append(log)
            parts.append(log.command(number, tenure))
    repair.num_left = len(parts)
    if parts:
        yield repair, b"".join(parts)
    for step in steps:
        if step is repair:
            continue
        lacking: list[RedisLog] = []
        parts = []
        for log in step.logs:
            if log.is_lost:
                continue
            following[log] += 1
            if following[log] > stored[log]:
                lacking.append(log)
                parts.append(log.command(following[log], tenure))
        step.logs, step.num_left, step.num_held = lacking, len(parts), 0
        if parts:
            yield step, b"".join(parts)
