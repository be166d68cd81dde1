"""The store of logs in Redis or Valkey, as `store.protocol.LogStore` describes it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from penstock.store.protocol import CLAIMED, TORN, Entry, StoredLog, StoreWatcher, Wanted
from penstock.store.redis.address import parse_address
from penstock.store.redis.client import Client
from penstock.store.redis.layout import (
    LEASE_MS,
    LEASES,
    LIVES,
    LOGS,
    OPEN,
    REPLICAS,
    SAFETY_MS,
    TAKEN,
    parse_id,
    value_key,
)
from penstock.store.redis.log import RedisLog
from penstock.store.redis.owning import Owning
from penstock.store.redis.reading import Reading, RedisFollowing, read
from penstock.store.redis.scripts import CLAIM, EXCHANGE
from penstock.store.redis.survey import Survey
from penstock.store.redis.tenure import Tenure


class RedisStore:
    """A `LogStore` whose logs are streams in Redis 7 or Valkey 8, or newer.

    `url` is redis://HOST:PORT/DB, or rediss:// for TLS. `?wait=N` in it counts an entry as stored
    only if N of the store's own replicas have it. `username` and `password` win over those in the
    URL. `patience` is in seconds. Raises StartError if the URL cannot be read.
    """

    def __init__(
        self, url: str, *, patience: float, username: str = "", password: str = ""
    ) -> None:
        address = parse_address(url, username, password)
        self._tenure = Tenure()
        self._client = Client(address)
        self._owning = Owning(address, self._tenure, patience)
        self._reading = Reading(self._client, self._tenure.replica)
        self._survey = Survey(self._client, self._tenure, lambda: self._owning.reconnected_at)
        self._claiming = asyncio.Lock()

    @property
    def replica(self) -> str:
        """This replica's unguessable name."""
        return self._tenure.replica

    @property
    def problem(self) -> str:
        """Why the store does not answer now, as a sentence, or ""."""
        return self._owning.problem

    def num_bytes(self) -> int:
        """Return the memory of the entries that this replica may have to write again."""
        return self._owning.num_bytes()

    async def start(self, watcher: StoreWatcher) -> None:
        """Connect and begin the lease. Raises StartError."""
        await self._owning.start(watcher)
        self._reading.start()
        self._survey.start(watcher)

    async def release(self) -> None:
        """Give the lease back; the others see it within 50 ms."""
        await self._owning.release()

    async def stop(self) -> None:
        """Release, and close all connections."""
        await self._owning.release()
        await self._survey.stop()
        await self._reading.stop()
        await self._owning.stop()
        await self._client.close()

    # Owning.

    def open(self, stream_id: str, header: Entry) -> StoredLog:
        """Begin a log in epoch 1."""
        return self._owning.open(stream_id, header)

    def append(
        self,
        entries: Sequence[tuple[StoredLog, Entry]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Append entries in one write; call `then` when they are stored."""
        self._owning.append(entries, then)

    def end(
        self, log: StoredLog, entry: Entry, retain: float, then: Callable[[], None] = lambda: None
    ) -> None:
        """Append the last entry; the log expires `retain` seconds later."""
        assert isinstance(log, RedisLog)
        self._owning.end(log, entry, retain, then)

    def drop(self, stream_id: str) -> None:
        """Remove an ended log."""
        self._owning.drop(stream_id)

    async def confirm_owner(self, log: StoredLog) -> None:
        """Learn whether this replica still owns `log`. Raises StoreError."""
        assert isinstance(log, RedisLog)
        await self._owning.confirm_owner(log)

    # Reading.

    async def follow(self, wanted: Sequence[Wanted]) -> list[RedisFollowing | None]:
        """Read logs, and what is appended later. Raises StoreError."""
        return await self._reading.follow(wanted)

    async def headers(self, stream_ids: Sequence[str]) -> list[Entry | None]:
        """Return the headers of logs. Raises StoreError."""
        asks = [("XRANGE", LOGS + each, "1-0", "1-0") for each in stream_ids]
        return [found[0][1][1] if found else None for found in await self._client.call_all(asks)]

    async def is_followed(self, stream_id: str) -> bool:
        """Return True if another replica follows the log now. Raises StoreError."""
        return await self._reading.is_followed(stream_id)

    # Taking over.

    async def claim(self, logs: Sequence[tuple[str, int]]) -> list[RedisLog | None]:
        """Become the owner of logs that have these epochs. Raises StoreError."""
        async with self._claiming:
            await self._survey.until_owners_had_their_time()
            free = [each for each in dict.fromkeys(logs) if not self._has(*each)]
            try:
                won = await self._claim(free) if free else {}
            except BaseException:
                # They may be this replica's in the store, where nobody looks for orphans then.
                self._survey.unsettled |= dict(free)
                raise
        return [won.get(each) for each in logs]

    def _has(self, stream_id: str, epoch: int) -> bool:
        """Return True if this replica has claimed the log in this epoch already."""
        log = self._owning.logs.get(stream_id)
        return log is not None and log.epoch > epoch

    async def _claim(self, logs: Sequence[tuple[str, int]]) -> dict[tuple[str, int], RedisLog]:
        tenure = self._tenure.name
        keys = [REPLICAS, OPEN + tenure, LIVES, *(LOGS + stream_id for stream_id, _ in logs)]
        words = [CLAIMED, TORN, *(word for log in logs for word in log)]
        claimed = await self._client.run(CLAIM, keys, OPEN, tenure, SAFETY_MS, TAKEN, *words)
        won = [each for each, is_won in zip(logs, claimed, strict=True) if is_won]
        histories = await read(self._client, [LOGS + stream_id for stream_id, _ in won])
        owned: dict[tuple[str, int], RedisLog] = {}
        for stream_id, epoch in won:
            entries = [(each, fields[1]) for each, fields in histories[LOGS + stream_id]]
            history = [each for each in entries if parse_id(each[0])[0] <= epoch]
            # If the store has just lost the entry of this claim, it may have lost others, too.
            first = dict(entries).get(b"%d-0" % (epoch + 1), TORN)
            log = owned[stream_id, epoch] = RedisLog(stream_id, epoch + 1, first, history)
            self._owning.adopt(log)
        for stream_id, _ in logs:
            self._survey.unsettled.pop(stream_id, None)
        return owned

    # Small values that replicas share.

    async def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        """Store a value unless the name has one; return the one it has. Raises StoreError."""
        ttl_ms = max(1, round(ttl * 1000))
        found: bytes | None = await self._client.call(
            "SET", value_key(name), value, "PX", ttl_ms, "NX", "GET"
        )
        return found

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        """Store a value in place of the old one. Raises StoreError."""
        await self._client.call("SET", value_key(name), value, "PX", max(1, round(ttl * 1000)))

    async def get(self, name: str) -> bytes | None:
        """Return a value, or None. Raises StoreError."""
        found: bytes | None = await self._client.call("GET", value_key(name))
        return found

    async def delete(self, name: str) -> None:
        """Remove a value. Raises StoreError."""
        await self._client.call("DEL", value_key(name))

    async def exchange(self, mine: bytes) -> Mapping[str, bytes]:
        """Publish a value with the lease; return those of the other replicas. Raises StoreError."""
        self._tenure.shared = b"=" + mine
        keys = [REPLICAS, self._tenure.lease]
        found = await self._client.run(EXCHANGE, keys, LEASES, LEASE_MS, self._tenure.shared)
        others = {
            name.decode().partition(".")[0]: value[1:]
            for name, value in zip(found[::2], found[1::2], strict=True)
            if value.startswith(b"=")
        }
        others.pop(self.replica, None)
        return others
