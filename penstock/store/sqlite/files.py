"""The files of all replicas, as any replica reads them, claims from them and cleans them up.

In: ids of logs, and cursors into them. Out: their entries, from file to file along the chain of
claims. Everything here blocks, so it runs in threads; each file has one connection with a lock.
Methods raise sqlite3.Error.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.store.protocol import Entry
from penstock.store.sqlite.folder import Folder, OthersLock
from penstock.store.sqlite.tables import (
    connect,
    decode_page,
    decode_step,
    encode,
    entries_of,
    is_damage,
    removal,
    transaction,
)

log = logging.getLogger(__name__)

# So many expired logs are removed in one transaction: appends wait for it.
_REMOVED_AT_ONCE = 50

_LAST_PAGE = "SELECT first + number, step FROM pages WHERE segment = ? ORDER BY first DESC LIMIT 1"
_PAGES_FROM = (
    "SELECT first, entries FROM pages WHERE segment = ? AND first + number > ? ORDER BY first"
)
_STEPS_AFTER = "SELECT step, entries FROM steps WHERE step > ? ORDER BY step"


@dataclass(frozen=True, slots=True)
class Segment:
    """What is known of one epoch of a log."""

    name: str
    """The file's."""
    no: int
    stream_id: str
    epoch: int
    claimed_by: str | None


@dataclass(slots=True)
class Cursor:
    """A place in a log: how far one follower has read."""

    stream_id: str
    name: str
    """The file's."""
    no: int
    epoch: int
    count: int = 0
    """How many entries of this segment were read."""
    left_out: int = 0
    """How many of the next entries the follower does not want."""
    step: int = 0
    """The last step that was read."""
    is_fenced: bool = False
    """True if the segment has no more entries."""

    def take(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Count entries as read; return those that the follower wants."""
        self.count += len(entries)
        if not self.left_out:
            return entries
        num = min(self.left_out, len(entries))
        self.left_out -= num
        return entries[num:]


News = list[tuple[Cursor, Sequence[Entry]]]


class LogFile:
    """A replica's file."""

    def __init__(self, folder: Folder, name: str, synchronous: str, timeout: float) -> None:
        self.name = name
        self.replica = name.partition(".")[0]
        self.lease = OthersLock(folder.lease(name))
        self.alive = OthersLock(folder.alive(name))
        self._path = folder.file(name)
        self._synchronous = synchronous
        self._timeout = timeout
        self._db = connect(self._path, synchronous, timeout)
        self._lock = threading.Lock()
        # Changes have another connection: they may have to wait, and reading never does.
        self._changing: sqlite3.Connection | None = None
        self._changing_lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        self.lease.close()
        self.alive.close()
        with self._lock, self._changing_lock:
            self._db.close()
            if self._changing:
                self._changing.close()

    @contextlib.contextmanager
    def _state(self) -> Iterator[sqlite3.Connection]:
        """Read one state of the file."""
        with self._lock, transaction(self._db, "BEGIN DEFERRED"):
            yield self._db

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Change the file, alone."""
        with self._changing_lock:
            if self._changing is None:
                self._changing = connect(self._path, self._synchronous, self._timeout)
            with transaction(self._changing, "BEGIN IMMEDIATE"):
                yield self._changing

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Reading.

    def find(self, stream_id: str, epoch: int) -> Segment | None:
        """Return a log's segment of this epoch, unless its time is over."""
        rows = self._rows(
            "SELECT no, claimed_by FROM segments"
            " WHERE id = ? AND epoch = ? AND (until IS NULL OR until > ?)",
            *(stream_id, epoch, time.time()),
        )
        for no, claimed_by in rows:
            return Segment(self.name, no, stream_id, epoch, claimed_by)
        return None

    def header(self, segment: Segment) -> Entry | None:
        """Return the header of a log's first segment."""
        for (header,) in self._rows("SELECT header FROM headers WHERE segment = ?", segment.no):
            return bytes(header)
        return None

    def read(self, cursor: Cursor) -> Sequence[Entry]:
        """Return all entries that the cursor has not read, and move it."""
        with self._state() as db:
            row = db.execute(
                "SELECT opened, claimed_by FROM segments WHERE no = ?", (cursor.no,)
            ).fetchone()
            if row is None:
                return []
            step, claimed_by = row
            num_paged = 0
            if last := db.execute(_LAST_PAGE, (cursor.no,)).fetchone():
                num_paged, step = last
            entries: list[Entry] = []
            if cursor.count < num_paged:
                entries += _pages_from(db, cursor)
            steps = db.execute(_STEPS_AFTER, (step,)).fetchall()
        recent = [entry for _, blob in steps for entry in entries_of(cursor.no, decode_step(blob))]
        entries += recent[max(cursor.count - num_paged, 0) :]
        cursor.step = steps[-1][0] if steps else max(step, cursor.step)
        cursor.is_fenced = claimed_by is not None
        return cursor.take(entries)

    def read_new(self, cursors: Sequence[Cursor], news: News) -> None:
        """Add the new entries for cursors that have all read this file before; move them.

        If it raises, all entries of the cursors that it has moved are in `news`.
        """
        oldest = min(cursor.step for cursor in cursors)
        rows = self._rows(_STEPS_AFTER, oldest)
        if not rows:
            return
        steps: list[tuple[int, list[Any]]] = [(step, decode_step(blob)) for step, blob in rows]
        first, last = rows[0][0], rows[-1][0]
        in_time: dict[int, list[tuple[Cursor, list[Entry]]]] = {}
        for cursor in cursors:
            if cursor.step + 1 < first:
                news.append((cursor, self.read(cursor)))
            else:
                in_time.setdefault(cursor.no, []).append((cursor, []))
        for step, entries in steps:
            for no, entry in zip(entries[::2], entries[1::2], strict=True):
                for cursor, new in in_time.get(no, ()):
                    if cursor.step >= step:
                        continue
                    if isinstance(entry, bytes):
                        new.append(entry)
                    else:
                        cursor.is_fenced = True
        for cursor, new in (each for same in in_time.values() for each in same):
            cursor.step = max(cursor.step, last)
            news.append((cursor, cursor.take(new)))

    def follows(self, stream_id: str) -> bool:
        """Return True if the file's replica follows the log."""
        return bool(self._rows("SELECT 1 FROM follows WHERE id = ?", stream_id))

    def published(self) -> bytes | None:
        """Return what the file's replica has published."""
        for (value,) in self._rows("SELECT value FROM published"):
            return bytes(value)
        return None

    def running(self) -> list[Segment]:
        """Return the segments of logs that have not ended and nobody has claimed."""
        return self._segments("until IS NULL AND claimed_by IS NULL")

    def claimed(self) -> list[Segment]:
        """Return the segments that were claimed."""
        return self._segments("claimed_by IS NOT NULL")

    def _segments(self, condition: str) -> list[Segment]:
        rows = self._rows(
            f"SELECT no, id, epoch, claimed_by FROM segments WHERE {condition}"  # noqa: S608
        )
        return [Segment(self.name, *row) for row in rows]

    # Changing.

    def fence(self, segment: Segment, claimant: str) -> bool:
        """Give the log to a claimant, if it has not changed and has not ended."""
        with self._change() as db:
            changed = db.execute(
                "UPDATE segments SET claimed_by = ?"
                " WHERE no = ? AND id = ? AND until IS NULL AND claimed_by IS ?",
                (claimant, segment.no, segment.stream_id, segment.claimed_by),
            ).rowcount
            if changed:
                db.execute(
                    "INSERT INTO steps SELECT max(step) + 1, ? FROM steps",
                    (encode([segment.no, None]),),
                )
        return bool(changed)

    def expired(self) -> list[tuple[int, str, int]]:
        """Return number, id and epoch of some last segments whose log's time is over."""
        query = "SELECT no, id, epoch FROM segments WHERE until <= ? LIMIT ?"
        return self._rows(query, time.time(), _REMOVED_AT_ONCE)

    def segments(self, stream_id: str) -> list[tuple[int, int, bool]]:
        """Return epoch and number of a log's segments here, each with True if the log ended."""
        return self._rows(
            "SELECT epoch, no, until IS NOT NULL FROM segments WHERE id = ?", stream_id
        )

    def remove(self, segments: Sequence[int]) -> None:
        """Remove segments."""
        with self._change() as db:
            for statement, values in removal(segments):
                db.execute(statement, values).fetchall()  # a vacuum goes on while it is asked

    def is_empty(self) -> bool:
        """Return True if no log has a segment here."""
        return not self._rows("SELECT 1 FROM segments LIMIT 1")


def _pages_from(db: sqlite3.Connection, cursor: Cursor) -> list[Entry]:
    """Return the entries in pages that a cursor has not read."""
    pages = db.execute(_PAGES_FROM, (cursor.no, cursor.count)).fetchall()
    return [
        entry
        for first, blob in pages
        for entry in decode_page(blob)[max(cursor.count - first, 0) :]
    ]


class Files:
    """The files of all replicas of a folder."""

    def __init__(self, folder: Folder, synchronous: str, timeout: float) -> None:
        self.folder = folder
        self._synchronous = synchronous
        self._timeout = timeout
        self.claiming: set[tuple[str, int]] = set()
        """The ids and epochs of the logs that this replica claims now."""
        self._files: dict[str, LogFile] = {}
        self._damaged: set[str] = set()
        self._removed: list[LogFile] = []
        self._to_close: list[LogFile] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all files."""
        for file in (*self._files.values(), *self._removed, *self._to_close):
            file.close()
        self._files.clear()

    def note_damage(self, name: str, error: sqlite3.Error) -> None:
        """Leave a damaged file alone from now on. Raises the error if it is another one."""
        if not is_damage(error):
            raise error
        if name not in self._damaged:
            self._damaged.add(name)
            path = self.folder.file(name)
            log.error("%s is damaged; the streams in it are lost. You can remove it.", path)

    def get(self, name: str) -> LogFile | None:
        """Return a replica's file, or None if it is gone or damaged."""
        with self._lock:
            if name in self._damaged:
                return None
            if name not in self._files:
                try:
                    file = LogFile(self.folder, name, self._synchronous, self._timeout)
                except sqlite3.OperationalError:
                    if self.folder.file(name).exists():
                        raise
                    return None
                except sqlite3.DatabaseError as error:
                    self.note_damage(name, error)
                    return None
                self._files[name] = file
            return self._files[name]

    def close_removed(self) -> None:
        """Close the files that were gone at the last call already: no thread reads them now."""
        with self._lock:
            to_close, self._to_close, self._removed = self._to_close, self._removed, []
        for file in to_close:
            file.close()

    def all(self) -> list[LogFile]:
        """Return the files that are there now. Raises OSError too."""
        names = set(self.folder.names())
        with self._lock:
            self._removed += [self._files.pop(name) for name in self._files.keys() - names]
        return [file for name in names if (file := self.get(name)) is not None]

    # Logs.

    def find(self, stream_id: str) -> Segment | None:
        """Return a log's first segment."""
        with self._lock:
            known = list(self._files.values())
        # The folder is listed only if the log is in no file that is known already.
        return self._first_of(known, stream_id) or self._first_of(self.all(), stream_id)

    def _first_of(self, files: Sequence[LogFile], stream_id: str) -> Segment | None:
        for file in files:
            with self.whatever_is_damaged(file):
                if segment := file.find(stream_id, 1):
                    return segment
        return None

    @contextlib.contextmanager
    def whatever_is_damaged(self, file: LogFile) -> Iterator[None]:
        """Pass over a damaged file, and go on with the others."""
        try:
            yield
        except sqlite3.Error as error:
            self.note_damage(file.name, error)

    def next(self, segment: Segment) -> Segment | None:
        """Return the segment of the next epoch, if it is there."""
        file = self.get(segment.claimed_by) if segment.claimed_by is not None else None
        return file.find(segment.stream_id, segment.epoch + 1) if file else None

    def at_epoch(self, stream_id: str, epoch: int) -> Segment | None:
        """Return a log's segment of an epoch, if the chain reaches it."""
        segment = self.find(stream_id)
        while segment and segment.epoch < epoch:
            segment = self.next(segment)
        return segment

    def is_abandoned(self, segment: Segment, own: str | None) -> bool:
        """Return True if a segment's claimant died before it wrote the next one.

        Or if it is this replica (`own`), and the claim was cancelled.
        """
        if segment.claimed_by is None:
            return False
        claimant = self.get(segment.claimed_by)
        if claimant is None:
            return not self.folder.file(segment.claimed_by).exists()
        is_own = claimant.name == own and (segment.stream_id, segment.epoch) not in self.claiming
        # In this order: a claimant without a lease writes no segment any more.
        return (is_own or not claimant.lease.is_held()) and self.next(segment) is None

    def claim(self, stream_id: str, epoch: int, claimant: str) -> bool:
        """Fence a log in this epoch for a claimant; return False if another one owns it now."""
        segment = self.at_epoch(stream_id, epoch)
        file = segment and self.get(segment.name)
        if segment is None or not isinstance(file, LogFile):
            return False
        if segment.claimed_by == claimant:
            return self.next(segment) is None  # an earlier claim was cancelled too late
        if segment.claimed_by is not None and not self.is_abandoned(segment, claimant):
            return False
        return file.fence(segment, claimant)

    def read_all(self, cursor: Cursor) -> Sequence[Entry]:
        """Return all entries that a new cursor has not read, from file to file, and move it."""
        file = self.get(cursor.name)
        entries = list(file.read(cursor)) if file else []
        while cursor.is_fenced and (file := self.advance(cursor)):
            entries += file.read(cursor)
        return entries

    def advance(self, cursor: Cursor) -> LogFile | None:
        """Move a cursor from a segment that was claimed to the next one, if that is there.

        Returns the next one's file.
        """
        file = self.get(cursor.name)
        segment = file and file.find(cursor.stream_id, cursor.epoch)
        following = self.next(segment) if isinstance(segment, Segment) else None
        if following is None:
            return None
        cursor.name, cursor.no, cursor.epoch = following.name, following.no, following.epoch
        cursor.count = cursor.step = 0
        cursor.is_fenced = False
        return self.get(cursor.name)

    def remove(self, stream_id: str) -> None:
        """Remove an ended log from all files, its first segment first.

        Whoever finds a claimed segment whose next one is gone takes the log for abandoned. So the
        next one goes after it.
        """
        found = [(*segment, file) for file in self.all() for segment in file.segments(stream_id)]
        if any(has_ended for _, _, has_ended, _ in found):
            for _, no, _, file in sorted(found, key=lambda each: each[0]):
                file.remove([no])
