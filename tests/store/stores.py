"""Every store that is tested, and replicas of it: in this process, and in processes to kill.

In: a place where replicas meet, such as a folder. Out: a `Replica`, a store with everything that it
reported; and a `ReplicaProcess`, a replica in a process of its own, which a test can kill with -9,
stop and continue. To test another store, add a class with the methods of `Place` to `PLACES`.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from penstock.store.protocol import Entry, Following, LogStore, StoredLog, Wanted
from penstock.store.redis import RedisStore
from penstock.store.sqlite.store import SqliteStore
from tests.store.servers import RedisServer

PATIENCE_S = 10.0
# How long a test waits for what must happen. Only a failing test waits so long.
LONG_S = 30.0


class Place(Protocol):
    """Where the replicas of one store meet."""

    def __init__(self, folder: Path) -> None: ...

    @property
    def spec(self) -> str:
        """What the class's `from_spec` needs to find the place in another process."""

    @classmethod
    def from_spec(cls, spec: str) -> "Place": ...

    def new_store(self, patience: float) -> LogStore:
        """Return a new replica's store, not started."""

    async def open(self) -> None:
        """Make the place, for example start its server."""

    async def begin_life(self) -> None:
        """Let the place lose what it may lose at the end of a life, which is nothing here, and
        begin another one. Its replicas are dead if they cannot outlive that."""

    async def close(self) -> None:
        """Remove it."""


class SqlitePlace:
    """A folder with SQLite's files."""

    synchronous = "NORMAL"

    def __init__(self, folder: Path) -> None:
        self.spec = str(folder / "log")

    @classmethod
    def from_spec(cls, spec: str) -> "SqlitePlace":
        place = cls(Path())
        place.spec = spec
        return place

    def new_store(self, patience: float) -> LogStore:
        return SqliteStore(Path(self.spec), patience=patience, synchronous=self.synchronous)

    async def open(self) -> None: ...

    async def begin_life(self) -> None:
        restart_machine(self.spec)

    async def close(self) -> None: ...


class RedisPlace:
    """A server of Redis."""

    program = "redis"

    def __init__(self, folder: Path) -> None:
        # Without syncs it keeps no write back, so a kill loses nothing.
        options = {"appendonly": "yes", "appendfsync": "no"}
        self._server = RedisServer(folder, self.program, options)
        self.spec = self._server.url

    @classmethod
    def from_spec(cls, spec: str) -> "RedisPlace":
        place = cls.__new__(cls)
        place.spec = spec
        return place

    def new_store(self, patience: float = PATIENCE_S) -> LogStore:
        return RedisStore(self.spec, patience=patience)

    async def open(self) -> None:
        await asyncio.to_thread(self._server.start)

    async def begin_life(self) -> None:
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.start)

    async def close(self) -> None:
        self._server.kill()


class ValkeyPlace(RedisPlace):
    """A server of Valkey."""

    program = "valkey"


PLACES: dict[str, type[Place]] = {
    "sqlite": SqlitePlace,
    "redis": RedisPlace,
    "valkey": ValkeyPlace,
}


def files_of(folder: str) -> list[Path]:
    """Return the replicas' files in a folder."""
    return list(Path(folder).glob("*.log"))


def restart_machine(folder: str) -> None:
    """Let the files of dead replicas be of an earlier boot of the machine."""
    for path in files_of(folder):
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE life SET boot = 'an earlier boot'")


class Changes:
    """Lets a test wait for what others report."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def note(self) -> None:
        """Say that something has changed."""
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true. Raises TimeoutError."""
        async with asyncio.timeout(LONG_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Reports(Changes):
    """A watcher that remembers everything in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.lost: list[StoredLog] = []
        self.orphans: dict[str, int] = {}
        self.num_unreachable = 0
        self.num_changes = 0
        self.problem: Callable[[], str] = lambda: ""
        """Returns the store's problem."""
        self.problems: list[str] = []
        """The store's problems one after the other; "" where it had none again."""

    def log_lost(self, log: StoredLog) -> None:
        self.lost.append(log)
        self.order.append(f"lost {log.stream_id}")
        self.note()

    def logs_orphaned(self, orphans: Sequence[tuple[str, int]]) -> None:
        self.orphans.update(orphans)
        self.note()

    def store_changed(self) -> None:
        self.num_changes += 1
        self.problems.append(self.problem())
        self.note()

    def logs_unreachable(self) -> None:
        self.num_unreachable += 1
        self.order.append("unreachable")
        self.note()


class Reading(Changes):
    """What one follower of a log has got."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.following: Following | None = None
        self.is_ahead = False

    def note_ahead(self) -> None:
        self.is_ahead = True
        self.note()

    def take(self, entries: Sequence[Entry]) -> None:
        self.entries += entries
        self.note()

    async def until_it_has(self, num: int) -> None:
        """Wait for so many entries."""
        await self.until(lambda: len(self.entries) >= num)

    @property
    def followed(self) -> Following:
        """The following, of a log that is there."""
        assert self.following is not None
        return self.following


class Replica:
    """A store of this process, with its reports."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.reports = Reports()
        self.reports.problem = lambda: store.problem
        self._is_stopped = False

    async def start(self) -> None:
        await self.store.start(self.reports)

    async def stop(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            await self.store.stop()

    async def stored(self, log: StoredLog, *entries: Entry) -> None:
        """Append entries and wait until they are stored."""
        done = asyncio.Event()
        self.store.append([(log, entry) for entry in entries], done.set)
        async with asyncio.timeout(LONG_S):
            await done.wait()

    async def ended(self, log: StoredLog, entry: Entry, retain: float = 60.0) -> None:
        """Append the last entry and wait until it is stored."""
        done = asyncio.Event()
        self.store.end(log, entry, retain, done.set)
        async with asyncio.timeout(LONG_S):
            await done.wait()

    async def reading(self, stream_id: str, after: int = 0, epoch: int = 0) -> Reading:
        """Follow a log; `following` is None if it is unknown."""
        (reading,) = await self.readings(stream_id, after=after, epoch=epoch)
        return reading

    async def readings(self, *stream_ids: str, after: int = 0, epoch: int = 0) -> list[Reading]:
        """Follow a group of logs."""
        readings = [Reading() for _ in stream_ids]
        wanted = [
            Wanted(stream_id, reading.take, after, epoch, reading.note_ahead)
            for stream_id, reading in zip(stream_ids, readings, strict=True)
        ]
        found = await self.store.follow(wanted)
        for reading, following in zip(readings, found, strict=True):
            reading.following = following
        return readings

    async def claim(self, stream_id: str, epoch: int) -> StoredLog | None:
        """Claim one log."""
        (log,) = await self.store.claim([(stream_id, epoch)])
        return log

    async def all_of(self, stream_id: str) -> list[Entry]:
        """Return the entries that the log has now."""
        reading = await self.reading(stream_id)
        reading.followed.close()
        return reading.entries


class ReplicaProcess(Changes):
    """A replica in a process of its own (`tests/store/replica.py`)."""

    def __init__(self, place: Place, patience: float = PATIENCE_S) -> None:
        super().__init__()
        self._place = place
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._answers: dict[int, Any] = {}
        self.acknowledged: dict[str, int] = {}
        """How many entries of each log are known to be stored."""
        self.orphans: dict[str, int] = {}
        self.lost: list[str] = []
        self.problem = ""
        self.num_unreachable = 0
        self.has_ended = False

    async def start(self) -> None:
        """Start the process and its store."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.store.replica",
            name_of(self._place), self._place.spec, str(self._patience),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2], limit=1 << 24,
        )  # fmt: skip
        self._listening = asyncio.create_task(self._listen())
        await self.ask("start")

    async def ask(self, action: str, *arguments: Any) -> Any:
        """Let the process do something and return its answer."""
        number = next(self._numbers)
        self.tell(action, *arguments, number=number)
        await self.until(lambda: number in self._answers or self.has_ended)
        return self._answers.pop(number)

    def tell(self, action: str, *arguments: Any, number: int = -1) -> None:
        """Let the process do something, without an answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([number, action, *arguments]).encode() + b"\n")

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            kind, *rest = json.loads(line)
            if kind == "answer":
                self._answers[rest[0]] = rest[1]
            elif kind == "acknowledged":
                self.acknowledged[rest[0]] = rest[1]
            elif kind == "orphaned":
                self.orphans |= dict(rest[0])
            elif kind == "lost":
                self.lost.append(rest[0])
            elif kind == "problem":
                self.problem = rest[0]
            elif kind == "unreachable":
                self.num_unreachable += 1
            self.note()
        self.has_ended = True
        self.note()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def signal(self, which: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, which)

    async def kill(self) -> None:
        """Kill the process with -9, so that it cleans nothing up. Return when it is dead."""
        assert self._process is not None
        assert self._listening is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._listening  # what it had said before is read


def name_of(place: Place) -> str:
    """Return the name of a place's class in `PLACES`."""
    return next(name for name, each in PLACES.items() if type(place) is each)


class Replicas:
    """The replicas of one place, all stopped at the test's end."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.patience = PATIENCE_S
        self._replicas: list[Replica] = []
        self._processes: list[ReplicaProcess] = []

    async def new(self) -> Replica:
        """Start a replica in this process."""
        replica = Replica(self.place.new_store(self.patience))
        await replica.start()
        self._replicas.append(replica)
        return replica

    async def new_process(self) -> ReplicaProcess:
        """Start a replica in a process of its own."""
        process = ReplicaProcess(self.place, self.patience)
        self._processes.append(process)
        await process.start()
        return process

    async def close(self) -> None:
        for process in self._processes:
            await process.kill()
        for replica in self._replicas:
            await replica.stop()


@contextlib.asynccontextmanager
async def replicas_of(name: str, folder: Path) -> AsyncIterator[Replicas]:
    """Open a place and give replicas of it."""
    place = PLACES[name](folder)
    await place.open()
    replicas = Replicas(place)
    try:
        yield replicas
    finally:
        await replicas.close()
        await place.close()
