"""The reading side: logs that this replica follows while others append to them.

One XREAD asks for all followed logs at once, every 25 ms. It never blocks: nothing is lost between
a notice and a read, and a connection that breaks costs one more poll.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from penstock.store.protocol import TORN, Entry, StoreError, Wanted
from penstock.store.redis.client import Client
from penstock.store.redis.layout import LOGS, READERS, RENEW_S, parse_id
from penstock.store.redis.loops import Loop
from penstock.store.redis.scripts import FOLLOW, IS_FOLLOWED

POLL_S = 0.025
CHUNK = 1000
"""Entries of one log that one read returns at most."""

FOLLOWED_MS = 2000
"""How long a log counts as followed without a sign from its follower."""


RawEntry = tuple[bytes, Sequence[bytes]]
"""An entry as Redis returns it: its id, and its fields."""


class RedisFollowing:
    """A log that is followed."""

    def __init__(self, reading: "Reading", wanted: Wanted) -> None:
        self.stream_id = wanted.stream_id
        self.header: Entry = b""
        self.position = (0, 0)
        """Where to read on: the id of the last entry that was taken."""
        self._next = (1, 0)
        self._left_out = wanted.after
        self._wanted = wanted
        self._reading = reading

    @property
    def epoch(self) -> int:
        """The epoch of the last entry."""
        return self.position[0]

    def close(self) -> None:
        """Follow no more."""
        self._reading.leave(self)

    def take(self, found: Sequence[RawEntry]) -> None:
        """Take entries as the store returns them; those taken before are left out."""
        entries: list[Entry] = []
        for entry_id, fields in found:
            epoch, number = parse_id(entry_id)
            is_next = (epoch, number) == self._next
            if not is_next and epoch > self.epoch and number == 0:
                if self._is_ahead_of(epoch, fields):
                    self.close()
                    self._wanted.on_ahead()
                    return
                is_next = True
            if not is_next:
                continue  # behind a gap: its owner writes it again, or it is void
            self.position, self._next = (epoch, number), (epoch, number + 1)
            if not self.header:
                self.header = fields[1]
            elif self._left_out:
                self._left_out -= 1
            else:
                entries.append(fields[1])
        if entries:
            self._wanted.on_entries(entries)

    def _is_ahead_of(self, epoch: int, claim: Sequence[bytes]) -> bool:
        """Return True if a claim found less of the log than was read of it before."""
        if len(claim) > 2 and parse_id(claim[3]) < self.position:
            return True
        return claim[1] == TORN and self._left_out > 0 and epoch > self._wanted.epoch


class Reading:
    """All logs that this replica follows."""

    def __init__(self, client: Client, replica: str) -> None:
        self._client = client
        self._replica = replica
        self._followings: dict[str, list[RedisFollowing]] = {}
        self._left: set[str] = set()
        self._beginning: Counter[str] = Counter()
        """How many calls of `follow` begin with each log now."""
        self._leaving: dict[str, asyncio.Event] = {}
        """The log, if any, of which the store hears now that it is left."""
        self._wakened = asyncio.Event()
        self._loops: list[Loop] = []

    def start(self) -> None:
        """Begin to poll."""
        self._loops = [
            Loop("log followers", self._poll, POLL_S),
            Loop("log presence", self._stay, RENEW_S),
        ]

    async def stop(self) -> None:
        """Follow nothing any more."""
        for loop in self._loops:
            await loop.stop()
        self._left |= self._followings.keys()
        self._followings.clear()
        with contextlib.suppress(StoreError):
            await self._say_left()

    async def follow(self, wanted: Sequence[Wanted]) -> list[RedisFollowing | None]:
        """Read what there is, and follow. Raises StoreError."""
        keys = {each.stream_id: LOGS + each.stream_id for each in wanted}
        there: list[str] = []
        self._beginning.update(keys.keys())
        try:
            are_there = await self._client.call_all(("EXISTS", key) for key in keys.values())
            there += itertools.compress(keys, are_there)
            if not there:
                return [None] * len(wanted)
            for each in there:
                if leaving := self._leaving.get(each):  # it must not come after what follows
                    await leaving.wait()
            await self._say_followed(there)
            entries = await read(self._client, [keys[stream_id] for stream_id in there])
            return [self._begin(each, entries.get(keys[each.stream_id])) for each in wanted]
        finally:
            self._beginning.subtract(keys.keys())
            self._beginning += Counter()  # without those that are 0
            self._note_left(there)

    def _begin(self, wanted: Wanted, found: Sequence[RawEntry] | None) -> RedisFollowing | None:
        if not found:
            return None
        following = RedisFollowing(self, wanted)
        self._followings.setdefault(wanted.stream_id, []).append(following)
        following.take(found)
        if not following.header:
            self.leave(following)
            return None  # its beginning has disappeared
        self._wakened.set()
        return following

    def leave(self, following: RedisFollowing) -> None:
        """Follow a log no more."""
        same = self._followings.get(following.stream_id, [])
        if following in same:
            same.remove(following)
            if not same:
                del self._followings[following.stream_id]
                self._note_left([following.stream_id])

    def _note_left(self, stream_ids: Iterable[str]) -> None:
        """Note that logs may be followed no more, so that the next poll says it."""
        if left := {each for each in stream_ids if not self._follows(each)}:
            self._left |= left
            self._wakened.set()

    def _follows(self, stream_id: str) -> bool:
        return stream_id in self._followings or stream_id in self._beginning

    async def is_followed(self, stream_id: str) -> bool:
        """Return True if another replica follows the log. Raises StoreError."""
        return bool(await self._client.run(IS_FOLLOWED, [READERS + stream_id], self._replica))

    async def _poll(self) -> None:
        await self._wakened.wait()
        with contextlib.suppress(StoreError):  # the owning side reports it
            await self._say_left()
            await self._read_once()
        if not self._followings and not self._left:
            self._wakened.clear()

    async def _read_once(self) -> None:
        if not self._followings:
            return
        keys = [LOGS + stream_id for stream_id in self._followings]
        positions = [min(f.position for f in same) for same in self._followings.values()]
        ids = [f"{epoch}-{number}" for epoch, number in positions]
        found = await self._client.call("XREAD", "COUNT", CHUNK, "STREAMS", *keys, *ids)
        for key, entries in found or ():
            stream_id = key.decode().removeprefix(LOGS)
            for following in list(self._followings.get(stream_id, ())):
                following.take(entries)

    async def _stay(self) -> None:
        if self._followings:
            with contextlib.suppress(StoreError):
                await self._say_followed(self._followings)

    async def _say_followed(self, stream_ids: Iterable[str]) -> None:
        readers = [READERS + stream_id for stream_id in stream_ids]
        await self._client.run(FOLLOW, readers, self._replica, FOLLOWED_MS)

    async def _say_left(self) -> None:
        for stream_id in list(self._left):
            self._left.discard(stream_id)
            if self._follows(stream_id):
                continue
            said = self._leaving[stream_id] = asyncio.Event()
            try:
                await self._client.call("ZREM", READERS + stream_id, self._replica)
            except StoreError:
                self._left.add(stream_id)
                raise
            finally:
                del self._leaving[stream_id]
                said.set()


async def read(client: Client, keys: Sequence[str]) -> dict[str, list[RawEntry]]:
    """Return the entries of logs by their keys. Raises StoreError."""
    entries: dict[str, list[RawEntry]] = {key: [] for key in keys}
    after = dict.fromkeys(keys, "-")
    while after:
        asks = [("XRANGE", key, since, "+", "COUNT", CHUNK) for key, since in after.items()]
        for key, found in zip(list(after), await client.call_all(asks), strict=True):
            entries[key] += found
            if len(found) < CHUNK:
                del after[key]
            else:
                after[key] = "(" + found[-1][0].decode()
    return entries
