"""The store of logs in a folder (`LogStore`): for one server, or for several on one machine."""

import asyncio
import contextlib
import functools
import logging
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from penstock import supervision
from penstock.errors import StartError
from penstock.store.protocol import Entry, StoredLog, StoreError, StoreWatcher, Wanted
from penstock.store.sqlite.files import Files
from penstock.store.sqlite.folder import Folder, start_error
from penstock.store.sqlite.following import Followed, Followers
from penstock.store.sqlite.keeper import Keeper
from penstock.store.sqlite.life import boot_id
from penstock.store.sqlite.log_file import Cursor, Key, News
from penstock.store.sqlite.tables import Statement, reason, removal
from penstock.store.sqlite.values import Values
from penstock.store.sqlite.writer import Writer
from penstock.store.sqlite.writes import OwnLog, Write

log = logging.getLogger(__name__)

_Found = tuple[Entry, Cursor, list[Entry]]
"""A log's header, a cursor into it, and the entries up to there."""

P = ParamSpec("P")
T = TypeVar("T")

# How often the store looks who has died, and for claims of this replica's logs. A stream whose
# owner dies pauses for half of this on average, and a look takes a tenth of a millisecond.
_LOOK_S = 0.025
# So many looks later, it removes what is expired in its own file.
_LOOKS_PER_SWEEP = 4
# So many looks later, it reports all orphans again, and removes what dead replicas have left.
_LOOKS_PER_ROUND = 40
_NUM_THREADS = 4

_FOLLOW = "INSERT OR IGNORE INTO follows VALUES (?)"
_UNFOLLOW = "DELETE FROM follows WHERE id = ?"
_PUBLISH = "INSERT OR REPLACE INTO published VALUES (1, ?)"
_END = "UPDATE segments SET until = ? WHERE no = ?"


class SqliteStore:
    """Logs in a folder on a local disk, shared by the server processes of one machine.

    Each process writes a file of its own and holds a lock on it, its lease. The kernel drops the
    lock when the process ends, also by kill -9; the others notice within 25 ms. A *stopped* process
    (SIGSTOP) keeps its lease, so its streams wait until it goes on or is killed.

    `patience` is how long, in seconds, writes that fail are tried again before all of this
    replica's logs are lost. `synchronous` is NORMAL or FULL. NORMAL survives the death of every
    process; a power loss may take the last entries of a log. FULL survives this too, but each write
    waits for the disk. The folder and its files are readable for their user only. Times are those
    of the machine's clock.
    """

    def __init__(self, folder: Path, *, patience: float, synchronous: str = "NORMAL") -> None:
        assert synchronous in {"NORMAL", "FULL"}
        self.replica = secrets.token_hex(16)
        self._folder = Folder(folder, patience)
        self._patience = patience
        self._synchronous = synchronous
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "log-store")
        boot = boot_id()
        self._writer = Writer(
            self._folder, self.replica, patience, synchronous, boot, self._threads
        )
        self._files = Files(self._folder, synchronous, boot, patience)
        self._keeper = Keeper(self._folder, self._files)
        # Followers never wait for anything else.
        self._reading_thread = ThreadPoolExecutor(1, "log-followers")
        self._followers = Followers(self._files, self._reading_thread)
        self._follows: Counter[str] = Counter()
        self._claims: dict[Key, asyncio.Event] = {}
        self._published: bytes | None = None
        self._values: Values | None = None
        self._is_released = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def problem(self) -> str:
        """Why the folder cannot be written now, as a sentence, or ""."""
        return self._writer.problem

    def num_bytes(self) -> int:
        """Return the memory of the entries that are to be written, or written into pages."""
        return self._writer.num_bytes()

    async def start(self, watcher: StoreWatcher) -> None:
        """Open the folder and begin the lease. Raises StartError."""
        self._watcher = watcher
        try:
            await self._open(watcher)
        except BaseException:
            await self._close()
            raise
        self._tasks = [
            supervision.keep("log followers", self._followers.run),
            supervision.keep("log leases", self._look_again),
        ]

    async def _open(self, watcher: StoreWatcher) -> None:
        path = self._folder.path
        try:
            await asyncio.to_thread(self._folder.prepare)
            self._values = await asyncio.to_thread(
                Values, self._folder, self._synchronous, self._patience
            )
            await self._writer.start(watcher, self._first_writes, self._prepare_again)
        except OSError as error:
            raise start_error(path, error) from error
        except sqlite3.Error as error:
            raise StartError(
                f"The folder {path} cannot be used: {reason(error, self._folder.path)}",
                "Free some space or repair the disk, or name another folder.",
            ) from error

    async def release(self) -> None:
        """Give the lease back, after what was appended before is stored."""
        self._is_released = True
        with contextlib.suppress(StoreError):
            await self._writer.wait(Write())
        self._writer.release()

    async def stop(self) -> None:
        """Release, and close everything."""
        await self.release()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close()

    async def _close(self) -> None:
        await self._writer.close()
        for threads in (self._threads, self._reading_thread):
            await asyncio.to_thread(threads.shutdown)
        self._files.close()
        if self._values:
            self._values.close()

    # Owning.

    def open(self, stream_id: str, header: Entry) -> OwnLog:
        """Begin a log in epoch 1 with this replica as its owner."""
        return self._writer.open(stream_id, header)

    def append(
        self,
        entries: Sequence[tuple[StoredLog, Entry]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Append entries; usually they are stored before this returns."""
        own = cast("Sequence[tuple[OwnLog, Entry]]", entries)  # only `open` and `claim` make logs
        self._writer.add(Write(own, then=then))

    def end(
        self, log: StoredLog, entry: Entry, retain: float, then: Callable[[], None] = lambda: None
    ) -> None:
        """Append the last entry. The log stays readable for `retain` seconds."""
        assert isinstance(log, OwnLog)
        statement = (_END, (time.time() + retain, log.no))
        self._writer.add(Write([(log, entry)], [statement], ended=log, then=then))

    def drop(self, stream_id: str) -> None:
        """Remove an ended log before its time."""
        self._threads.submit(self._files.remove, stream_id)

    async def confirm_owner(self, log: StoredLog) -> None:
        """Learn whether this replica still owns `log`. Raises StoreError."""
        await self._writer.confirm_owner()

    # Reading.

    async def follow(self, wanted: Sequence[Wanted]) -> Sequence[Followed | None]:
        """Read logs from their beginnings, and what is appended later. Raises StoreError.

        `on_ahead` is never called: no process outlives a life of the folder.
        """
        await self._begin_to_follow(wanted)
        try:
            found = await self._in_thread(self._read, wanted)
        except BaseException:
            for each in wanted:
                self._end_to_follow(each.stream_id)
            raise
        return [self._pass_on(*pair) for pair in zip(wanted, found, strict=True)]

    def _read(self, wanted: Sequence[Wanted]) -> Sequence[_Found | None]:
        """Read headers and entries of logs (in a thread)."""
        headers = self._files.headers(each.stream_id for each in wanted)
        found: list[_Found | None] = []
        for stream_id, _, after, *_ in wanted:
            first, header = headers.get(stream_id, (None, b""))
            if first is None:
                found.append(None)
            else:
                found.append(
                    (header, Cursor(stream_id, first.name, first.no, 1, left_out=after), [])
                )
        there = {id(each[1]): each[2] for each in found if each}
        news: News = []
        self._files.read_on([each[1] for each in found if each], news)
        for cursor, entries in news:
            there[id(cursor)] += entries
        return found

    def _pass_on(self, wanted: Wanted, found: _Found | None) -> Followed | None:
        """Pass on the entries of a log that are there, and from now on later ones."""
        if found is None:
            self._end_to_follow(wanted.stream_id)
            return None
        header, cursor, entries = found
        followed = Followed(header, cursor, wanted.on_entries, self._close_followed)
        self._followers.add(followed)
        if entries:
            wanted.on_entries(entries)
        return followed

    def _close_followed(self, followed: Followed) -> None:
        self._followers.remove(followed)
        self._end_to_follow(followed.cursor.stream_id)

    async def _begin_to_follow(self, wanted: Sequence[Wanted]) -> None:
        """Say that this replica follows logs: in its own file."""
        ids = [each.stream_id for each in wanted]
        self._follows.update(ids)
        try:
            await self._writer.wait(Write(statements=[(_FOLLOW, (each,)) for each in ids]))
        except BaseException:
            for each in ids:
                self._end_to_follow(each)
            raise

    def _end_to_follow(self, stream_id: str) -> None:
        self._follows[stream_id] -= 1
        if not self._follows[stream_id]:
            del self._follows[stream_id]
            self._writer.add_soon(Write(statements=[(_UNFOLLOW, (stream_id,))]))

    async def headers(self, stream_ids: Sequence[str]) -> Sequence[Entry | None]:
        """Return the headers of logs. Raises StoreError."""
        found = await self._in_thread(self._files.headers, stream_ids)
        return [found[each][1] if each in found else None for each in stream_ids]

    async def is_followed(self, stream_id: str) -> bool:
        """Return True if another replica follows the log now. Raises StoreError."""
        return await self._in_thread(self._is_followed, self._writer.name, stream_id)

    def _is_followed(self, own: str | None, stream_id: str) -> bool:
        return any(
            file.name != own and file.alive.is_held() and file.follows(stream_id)
            for file in self._files.all()
        )

    # Taking over.

    async def claim(self, logs: Sequence[Key]) -> Sequence[OwnLog | None]:
        """Become the owner of logs that have these epochs. Raises StoreError."""
        while earlier := [self._claims[key] for key in logs if key in self._claims]:
            await earlier[0].wait()
        self._claims |= dict.fromkeys(logs, asyncio.Event())
        self._files.claiming.update(logs)
        fence = asyncio.ensure_future(self._fence(logs))
        try:
            # If this is cancelled, the thread still goes on, and the logs are orphans then.
            name, won = await asyncio.shield(fence)
            if not self._owns(name):  # without the lease of `name`, the logs are orphans again
                raise StoreError("This server owns no logs now.")
            taken, are_stored = self._writer.take(won)
            await are_stored
            kept = {key: own for key, own in taken.items() if not own.is_lost}
            return [kept.get(key) for key in logs]
        finally:
            fence.add_done_callback(functools.partial(self._end_claim, logs))

    def _end_claim(
        self, logs: Sequence[Key], fence: asyncio.Future[tuple[str, dict[Key, Entry]]]
    ) -> None:
        if not fence.cancelled():
            fence.exception()  # whoever was cancelled does not ask for it
        self._files.claiming.difference_update(logs)
        for key in dict.fromkeys(logs):
            self._claims.pop(key).set()

    async def _fence(self, logs: Sequence[Key]) -> tuple[str, dict[Key, Entry]]:
        """Fence logs for this replica's file.

        Returns the file's name, and the logs that were won, each with the entry to append first.
        """
        name = self._writer.name
        if name is None or not self._owns(name):
            raise StoreError("This server owns no logs now.")
        return name, await self._in_thread(self._files.claim, logs, name)

    @property
    def _can_claim(self) -> bool:
        return not self._is_released and self._writer.name is not None

    def _owns(self, name: str) -> bool:
        return not self._is_released and name == self._writer.name

    # Small values that replicas share.

    async def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        """Store a value unless the name has one; return the one it has. Raises StoreError."""
        return await self._in_thread(self._shared.put_if_absent, name, value, ttl)

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        """Store a value, in place of the old one. Raises StoreError."""
        await self._in_thread(self._shared.put, name, value, ttl)

    async def get(self, name: str) -> bytes | None:
        """Return a value, or None. Raises StoreError."""
        return await self._in_thread(self._shared.get, name)

    async def delete(self, name: str) -> None:
        """Remove a value. Raises StoreError."""
        await self._in_thread(self._shared.delete, name)

    @property
    def _shared(self) -> Values:
        assert self._values is not None, "the store has not started"
        return self._values

    async def exchange(self, mine: bytes) -> Mapping[str, bytes]:
        """Publish a value in this replica's file; return the others'. Raises StoreError."""
        if mine != self._published:
            await self._writer.wait(Write(statements=[(_PUBLISH, (mine,))]))
            self._published = mine
        return await self._in_thread(self._others_values)

    def _others_values(self) -> Mapping[str, bytes]:
        values = {}
        for file in self._files.all():
            replica = file.replica
            if replica != self.replica and file.lease.is_held():
                value = file.published()
                if value is not None:
                    values[replica] = value
        return values

    # Looking after the folder.

    def _prepare_again(self) -> None:
        """Make the folder again if it was removed (in a thread)."""
        self._folder.prepare()
        self._shared.reopen()

    def _first_writes(self) -> list[Write]:
        """Say again, in a new file, what the old one said."""
        statements: list[Statement] = [(_FOLLOW, (each,)) for each in self._follows]
        if self._published is not None:
            statements.append((_PUBLISH, (self._published,)))
        return [Write(statements=statements)]

    def _remove(self, own: str, segments: list[int]) -> None:
        if segments and own == self._writer.name:
            self._writer.add(Write(statements=removal(segments)))

    async def _look_again(self) -> None:
        """Find the dead, their logs, and what is expired, for ever."""
        num_looks = 0
        is_failing = False
        while True:
            is_round = num_looks % _LOOKS_PER_ROUND == 0
            num_looks += 1
            self._writer.look_at_file()
            self._writer.look_for_claims()
            own = self._writer.name
            try:
                orphans = await self._in_thread(self._keeper.orphans, is_round, own)
                if orphans and self._can_claim:
                    self._watcher.logs_orphaned(orphans)
                if own is not None and num_looks % _LOOKS_PER_SWEEP == 0:
                    self._remove(own, await self._in_thread(self._keeper.expired, own))
                if is_round:
                    await self._in_thread(self._keeper.clean, own)
                is_failing = False
            except StoreError as error:
                if not is_failing:
                    log.warning("%s The folder is looked at again.", error, exc_info=True)
                is_failing = True
            await asyncio.sleep(_LOOK_S)

    async def _in_thread(self, run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that blocks. Raises StoreError instead of SQLite's and the system's."""
        call = functools.partial(run, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(reason(error, self._folder.path)) from error
