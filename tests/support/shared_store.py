"""A store of logs for several replicas in one process, whose moments a test decides.

It keeps the promises of `penstock.store.protocol`. A test can hold confirmations back, let a
replica die, and let the store lose the end of a log.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.store.protocol import (
    CLAIMED,
    TORN,
    Entry,
    Following,
    StoredLog,
    StoreWatcher,
    Wanted,
)

Then = Callable[[], None]


@dataclass
class _Log:
    header: Entry
    owner: str
    epoch: int = 1
    entries: list[Entry] = field(default_factory=list)
    has_ended: bool = False
    is_torn: bool = False
    followings: list["_Following"] = field(default_factory=list)


class Shared:
    """What all replicas see."""

    def __init__(self) -> None:
        self.logs: dict[str, _Log] = {}
        self.replicas: dict[str, Replica] = {}
        self.values: dict[str, bytes] = {}

    def replica(self, name: str) -> "Replica":
        return Replica(self, name)

    def entries_of(self, stream_id: str) -> list[Entry]:
        return self.logs[stream_id].entries

    def lose(self, stream_id: str, num: int) -> None:
        """Lose the last entries of a log whose owner is about to die, and begin another life."""
        log = self.logs[stream_id]
        del log.entries[-num:]
        log.has_ended, log.is_torn = False, True

    def tell_orphans(self) -> None:
        """Tell every living replica which logs have no owner."""
        orphans = [
            (stream_id, log.epoch)
            for stream_id, log in self.logs.items()
            if not log.has_ended and log.owner not in self.replicas
        ]
        for replica in list(self.replicas.values()):
            if orphans:
                replica.watcher.logs_orphaned(orphans)


def _num_claims(entries: Sequence[Entry]) -> int:
    return sum(entry in (CLAIMED, TORN) for entry in entries)


class _Following:
    def __init__(self, log: _Log, wanted: Wanted) -> None:
        self._log = log
        self._take = wanted.on_entries
        self.on_ahead = wanted.on_ahead
        self.num_seen = wanted.after
        self.header = log.header
        self.epoch = 1 + _num_claims(log.entries[: wanted.after])
        log.followings.append(self)
        # What was left out is of this epoch at most, or the log has other entries in its place.
        torn = [n for n, entry in enumerate(log.entries[: wanted.after]) if entry == TORN]
        if any(1 + _num_claims(log.entries[: n + 1]) > wanted.epoch for n in torn):
            self.fall_behind()

    def fall_behind(self) -> None:
        self.close()
        self.on_ahead()

    def read(self) -> None:
        new = self._log.entries[self.num_seen :]
        if new and self in self._log.followings:
            self.num_seen += len(new)
            self.epoch += _num_claims(new)
            self._take(new)

    def close(self) -> None:
        if self in self._log.followings:
            self._log.followings.remove(self)


class Replica:
    """One replica's view of the store (see `penstock.store.protocol.LogStore`)."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.shared = shared
        self.replica = name
        self.problem = ""
        self._held: list[Then] | None = None
        self._late: list[Then] | None = None
        self._published: bytes | None = None
        self.calls: Counter[str] = Counter()
        """How often the replica has called the store."""

    def num_bytes(self) -> int:
        return 0

    async def start(self, watcher: StoreWatcher) -> None:
        self.watcher = watcher
        self.shared.replicas[self.replica] = self
        self.shared.tell_orphans()

    async def release(self) -> None:
        self.shared.replicas.pop(self.replica, None)
        self.shared.tell_orphans()

    async def stop(self) -> None:
        await self.release()

    # What a test decides.

    def hold(self) -> None:
        """Store what is appended, and confirm nothing until `confirm`."""
        if self._held is None:
            self._held = []

    def confirm(self) -> None:
        """Confirm everything that was held back, and from now on at once."""
        while self._held:
            self._held.pop(0)()
        self._held = None

    def fall_behind(self) -> None:
        """Store nothing until `catch_up`."""
        self._late = []

    def catch_up(self) -> None:
        """Store everything that waits, and from now on at once."""
        late, self._late = self._late, None
        for write in late or ():
            write()

    def die(self) -> None:
        """Lose the lease. What was stored stays stored; nothing is confirmed any more."""
        self._held = []
        self.shared.replicas.pop(self.replica, None)
        self.shared.tell_orphans()

    # Owning.

    def open(self, stream_id: str, header: Entry) -> StoredLog:
        if self._late is not None:
            self._late.append(lambda: self._open(stream_id, header))
        else:
            self._open(stream_id, header)
        return StoredLog(stream_id, 1)

    def _open(self, stream_id: str, header: Entry) -> None:
        self.shared.logs[stream_id] = _Log(header, self.replica)

    def append(self, entries: Sequence[tuple[StoredLog, Entry]], then: Then = lambda: None) -> None:
        if self._late is not None:
            self._late.append(lambda: self.append(entries, then))
            return
        lost = {id(log): log for log, entry in entries if not self._write(log, entry)}
        for log in lost.values():
            self.watcher.log_lost(log)
        if self._held is None:
            then()
        else:
            self._held.append(then)

    def end(self, log: StoredLog, entry: Entry, retain: float, then: Then = lambda: None) -> None:
        if self._write(log, entry):
            self.shared.logs[log.stream_id].has_ended = True
            self.append([], then)
        else:
            self.watcher.log_lost(log)

    def drop(self, stream_id: str) -> None:
        del self.shared.logs[stream_id]

    async def confirm_owner(self, log: StoredLog) -> None:
        stored = asyncio.Event()
        if self._late is not None:
            self._late.append(stored.set)
            await stored.wait()
        await asyncio.sleep(0)
        if self.shared.logs[log.stream_id].epoch != log.epoch:
            self.watcher.log_lost(log)

    def _write(self, log: StoredLog, entry: Entry) -> bool:
        there = self.shared.logs[log.stream_id]
        if there.epoch != log.epoch:
            return False
        there.entries.append(entry)
        for following in list(there.followings):
            asyncio.get_running_loop().call_soon(following.read)
        return True

    # Reading and taking over.

    async def follow(self, wanted: Sequence[Wanted]) -> list[Following | None]:
        await asyncio.sleep(0)
        self.calls["follow"] += 1
        return [self._follow(each) for each in wanted]

    def _follow(self, wanted: Wanted) -> Following | None:
        log = self.shared.logs.get(wanted.stream_id)
        if log is None:
            return None
        following = _Following(log, wanted)
        following.read()
        return following

    async def headers(self, stream_ids: Sequence[str]) -> list[Entry | None]:
        logs = [self.shared.logs.get(each) for each in stream_ids]
        return [None if log is None else log.header for log in logs]

    async def is_followed(self, stream_id: str) -> bool:
        return bool(self.shared.logs[stream_id].followings)

    async def claim(self, logs: Sequence[tuple[str, int]]) -> list[StoredLog | None]:
        await asyncio.sleep(0)
        self.calls["claim"] += 1
        return [self._claim(*each) for each in logs]

    def _claim(self, stream_id: str, epoch: int) -> StoredLog | None:
        log = self.shared.logs.get(stream_id)
        if log is None or log.has_ended or log.epoch != epoch:
            return None
        log.epoch, log.owner = epoch + 1, self.replica
        claimed = StoredLog(stream_id, epoch + 1)
        for following in [each for each in log.followings if each.num_seen > len(log.entries)]:
            following.fall_behind()
        entry, log.is_torn = (TORN if log.is_torn else CLAIMED), False
        self._write(claimed, entry)
        return claimed

    # Values.

    async def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        there = self.shared.values.get(name)
        self.shared.values.setdefault(name, value)
        return there

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        self.shared.values[name] = value

    async def get(self, name: str) -> bytes | None:
        return self.shared.values.get(name)

    async def delete(self, name: str) -> None:
        self.shared.values.pop(name, None)

    async def exchange(self, mine: bytes) -> Mapping[str, bytes]:
        self._published = mine
        return {
            name: replica._published
            for name, replica in self.shared.replicas.items()
            if replica is not self and replica._published is not None
        }
