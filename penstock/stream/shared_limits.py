"""The limits of owners over several replicas.

About once a second, each replica publishes what each owner with limits has there, and adds what the
owner has at the others to its own checks. In: counts, and a function that exchanges them as bytes
(see `LogStore.exchange`). Not known here: streams, stores, HTTP.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from penstock.stream.budget import Budget

VERSION = 1
EVERY_S = 1.0
"""How often the replicas exchange their counts, in seconds."""

log = logging.getLogger("penstock.stream")

Exchange = Callable[[bytes], Awaitable[Mapping[str, bytes]]]
"""Publishes this replica's counts; returns those of the others by replica."""


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """What an owner has at one replica.

    `num_resumable` and `kept_bytes` are its resumable streams, open or kept, and the memory of the
    kept ones. Of the tokens per minute, `num_taken` counts from the replica's start, `num_unused`
    are reserved by requests, and `num_left` can still be reserved.
    """

    num_open: int = 0
    num_resumable: int = 0
    kept_bytes: int = 0
    num_taken: int = 0
    num_unused: int = 0
    num_left: int | None = None


NOTHING = Counts()


class Others:
    """What owners have at the other replicas, as they published it last."""

    def __init__(self) -> None:
        self._sums: dict[str, Counts] = {}
        self._replicas: Mapping[str, Mapping[str, Counts]] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def of(self, name: str) -> Counts:
        """Return what an owner has at all other replicas together."""
        return self._sums.get(name, NOTHING)

    def update(
        self,
        replicas: Mapping[str, Mapping[str, Counts]],
        budgets: Mapping[str, Budget],
        now: float,
    ) -> None:
        """Note what the replicas have published, and correct this replica's budgets."""
        before, self._replicas = self._replicas, replicas
        names = {name for counts in replicas.values() for name in counts}
        self._sums = {name: _sum(_each_of(name, replicas)) for name in names}
        for name, budget in budgets.items():
            budget.others_hold(self.of(name).num_unused, now)
            for replica, counts in replicas.items():
                if name not in counts:
                    continue
                if replica in before:
                    last = before[replica].get(name, NOTHING)
                    budget.others_took(counts[name].num_taken - last.num_taken, now)
                else:
                    _meet(budget, counts[name], now)

    def begin(self, name: str, budget: Budget, now: float) -> None:
        """Begin the budget of an owner that may have taken tokens elsewhere."""
        for count in _each_of(name, self._replicas):
            _meet(budget, count, now)
        budget.others_hold(self.of(name).num_unused, now)


def encode(counts: Mapping[str, Counts]) -> bytes:
    """Return the counts of each owner as MessagePack."""
    return msgspec.msgpack.encode((VERSION, counts))


def decode(data: bytes) -> dict[str, Counts]:
    """Return the counts of each owner; none if a replica of another version has written them."""
    try:
        version, counts = _decoder.decode(data)
        return msgspec.msgpack.decode(counts, type=dict[str, Counts]) if version == VERSION else {}
    except msgspec.MsgspecError:
        return {}


class Shares(Protocol):
    """Has counts to exchange (see `quotas.Quotas`)."""

    def counts(self, now: float) -> dict[str, Counts]:
        """Return what each owner with limits has here."""

    def others_have(self, replicas: Mapping[str, Mapping[str, Counts]], now: float) -> None:
        """Note what each owner has at each of the other replicas."""


async def keep_exchanging(shares: Shares, exchange: Exchange, every: float = EVERY_S) -> None:
    """Exchange the counts with the other replicas for ever, each `every` seconds.

    If an exchange fails, the counts that came last hold, and the next one is tried in time.
    """
    while True:
        try:
            published = await exchange(encode(shares.counts(time.monotonic())))
        except Exception as error:  # a store's errors are its own; a bug must not end the limits
            log.warning("the limits of keys could not be exchanged: %s", type(error).__name__)
        else:
            others = {replica: decode(data) for replica, data in published.items()}
            shares.others_have(others, time.monotonic())
        await asyncio.sleep(every)


def _each_of(name: str, replicas: Mapping[str, Mapping[str, Counts]]) -> Iterable[Counts]:
    return (counts[name] for counts in replicas.values() if name in counts)


def _sum(counts: Iterable[Counts]) -> Counts:
    num_open = num_resumable = kept_bytes = num_unused = 0
    for each in counts:
        num_open += each.num_open
        num_resumable += each.num_resumable
        kept_bytes += each.kept_bytes
        num_unused += each.num_unused
    return Counts(num_open, num_resumable, kept_bytes, 0, num_unused)


def _meet(budget: Budget, count: Counts, now: float) -> None:
    """Begin to share a budget with a replica that may have taken tokens for hours."""
    if count.num_left is not None:
        budget.lower_to(count.num_left, now)


_decoder = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
