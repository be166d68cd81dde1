"""One replica's file, as any replica reads it, claims logs in it, and removes them from it.

In: ids and numbers of segments, and cursors into them. Out: segments, headers and entries.
Everything here blocks, so it runs in threads; each file has one connection with a lock. Methods
raise sqlite3.Error.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from penstock.store.protocol import Entry
from penstock.store.sqlite.folder import Folder, OthersLock
from penstock.store.sqlite.tables import (
    closed_after_failure,
    connect,
    decode_page,
    decode_step,
    encode,
    life_of,
    removal,
    transaction,
)

# SQLite takes 32,766 values in a statement; many more than this gain nothing.
_VALUES_AT_ONCE = 1000
# So many expired logs are removed in one transaction: appends wait for it.
_REMOVED_AT_ONCE = 50

_LAST_PAGE = "SELECT first + number, step FROM pages WHERE segment = ? ORDER BY first DESC LIMIT 1"
_PAGES_FROM = (
    "SELECT first, entries FROM pages WHERE segment = ? AND first + number > ? ORDER BY first"
)
_FIND = (
    "SELECT no, id, epoch, claimed_by FROM segments"
    " WHERE id IN ({}) AND (until IS NULL OR until > ?)"
)
_STEPS_AFTER = "SELECT step, entries FROM steps WHERE step > ? ORDER BY step"


T = TypeVar("T")

Key = tuple[str, int]
"""A log's id and an epoch."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The facts about one epoch of a log."""

    name: str
    """The file's."""
    no: int
    stream_id: str
    epoch: int
    claimed_by: str | None

    @property
    def key(self) -> Key:
        """The log's id, and the epoch."""
        return self.stream_id, self.epoch


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
        self._timeout = timeout
        self._db = connect(self._path, synchronous, timeout)
        with closed_after_failure(self._db):
            self._boot, self._is_synced = life_of(self._db)
        # Nothing of a synced file is lost, so a claim in it must not be lost either.
        self._synchronous = "FULL" if self._is_synced else synchronous
        self._lock = threading.Lock()
        self._changing_lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        self.lease.close()
        self.alive.close()
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _state(self) -> Iterator[sqlite3.Connection]:
        """Read one state of the file."""
        with self._lock, transaction(self._db, "BEGIN DEFERRED"):
            yield self._db

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Change the file, alone.

        Changes have another connection, because they may have to wait, and reading never does. They
        are rare, so it is closed again: there may be many files.
        """
        with self._changing_lock:
            db = connect(self._path, self._synchronous, self._timeout)
            try:
                with transaction(db, "BEGIN IMMEDIATE"):
                    yield db
            finally:
                db.close()

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Reading.

    def find(self, keys: Collection[Key]) -> dict[Key, Segment]:
        """Return the segments of these logs and epochs that are here and whose time is not over."""
        ids = {stream_id for stream_id, _ in keys}
        rows = self._rows(_FIND.format(_marks(len(ids))), *ids, time.time())
        segments = [Segment(self.name, *row) for row in rows]
        return {each.key: each for each in segments if each.key in keys}

    def keys(self, stream_ids: Collection[str]) -> set[Key]:
        """Return the segments of these logs that are here, also of those whose time is over."""
        return {
            row
            for some in _portions(list(stream_ids))
            for row in self._rows(
                f"SELECT id, epoch FROM segments WHERE id IN ({_marks(len(some))})",  # noqa: S608
                *some,
            )
        }

    def headers(self, numbers: Sequence[int]) -> dict[int, Entry]:
        """Return the headers of logs by their first segments."""
        query = f"SELECT segment, header FROM headers WHERE segment IN ({_marks(len(numbers))})"  # noqa: S608
        return {no: bytes(header) for no, header in self._rows(query, *numbers)}

    def read(self, cursors: Sequence[Cursor], news: News) -> None:
        """Add all entries that cursors in this file have not read, in one pass; move them.

        If it raises, it has moved none.
        """
        with self._state() as db:
            places = [place for each in cursors if (place := _place_of(db, each))]
            oldest = min((place.step for place in places), default=0)
            rows = db.execute(_STEPS_AFTER, (oldest,)).fetchall() if places else []
        recent: dict[int, list[tuple[int, Entry]]] = {place.cursor.no: [] for place in places}
        for step, blob in rows:
            entries = decode_step(blob)
            for no, entry in zip(entries[::2], entries[1::2], strict=True):
                if isinstance(no, int) and no in recent and isinstance(entry, bytes):
                    recent[no].append((step, entry))
        for place in places:
            cursor = place.cursor
            unpaged = [entry for step, entry in recent[cursor.no] if step > place.step]
            place.paged += unpaged[max(cursor.count - place.num_paged, 0) :]
            cursor.step = rows[-1][0] if rows else max(place.step, cursor.step)
            cursor.is_fenced = place.is_claimed
            news.append((cursor, cursor.take(place.paged)))

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
        late: list[Cursor] = []
        for cursor in cursors:
            if cursor.step + 1 < first:
                late.append(cursor)
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
        if late:
            self.read(late, news)

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

    def claimed(self, known: Collection[int] = ()) -> list[Segment]:
        """Return the segments that were claimed, without those with a known number."""
        rows = self._rows("SELECT no FROM segments WHERE claimed_by IS NOT NULL")
        numbers = [no for (no,) in rows if no not in known]
        return [
            each
            for some in _portions(numbers)
            for each in self._segments(
                f"claimed_by IS NOT NULL AND no IN ({_marks(len(some))})", *some
            )
        ]

    def _segments(self, condition: str, *values: object) -> list[Segment]:
        rows = self._rows(
            f"SELECT no, id, epoch, claimed_by FROM segments WHERE {condition}",  # noqa: S608
            *values,
        )
        return [Segment(self.name, *row) for row in rows]

    def has_all(self, segment: Segment, boot: str) -> bool:
        """Return True if the segment has all entries that were confirmed. `boot` is today's life.

        In a file of an earlier life, a segment with a claimant is not whole: the claimant's own
        segment, and with it confirmed entries, may be lost.
        """
        return self._boot in ("", boot) or (self._is_synced and segment.claimed_by is None)

    # Changing.

    def fence(self, segments: Sequence[Segment], claimant: str) -> list[Segment]:
        """Give logs to a claimant in one step; return those that have not changed or ended."""
        with self._change() as db:
            fenced = [each for each in segments if _mark(db, each, claimant)]
            if fenced:
                step = [word for each in fenced for word in (each.no, None)]
                db.execute("INSERT INTO steps SELECT max(step) + 1, ? FROM steps", (encode(step),))
        return fenced

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


@dataclass(slots=True)
class _Place:
    """Where a cursor stands in the pages of its segment."""

    cursor: Cursor
    is_claimed: bool
    num_paged: int
    step: int
    """The entries up to this step are in pages."""
    paged: list[Entry]
    """The entries in pages that the cursor has not read."""


def _place_of(db: sqlite3.Connection, cursor: Cursor) -> _Place | None:
    """Return a cursor's place, or None if the segment is gone."""
    row = db.execute(
        "SELECT opened, claimed_by IS NOT NULL FROM segments WHERE no = ?", (cursor.no,)
    ).fetchone()
    if row is None:
        return None
    num_paged, step = db.execute(_LAST_PAGE, (cursor.no,)).fetchone() or (0, row[0])
    # Entries that the follower does not want need not be read.
    num_unwanted = min(cursor.left_out, max(num_paged - cursor.count, 0))
    cursor.left_out -= num_unwanted
    cursor.count += num_unwanted
    paged = _pages_from(db, cursor) if cursor.count < num_paged else []
    return _Place(cursor, bool(row[1]), num_paged, step, paged)


def _pages_from(db: sqlite3.Connection, cursor: Cursor) -> list[Entry]:
    """Return the entries in pages that a cursor has not read."""
    pages = db.execute(_PAGES_FROM, (cursor.no, cursor.count)).fetchall()
    return [
        entry
        for first, blob in pages
        for entry in decode_page(blob)[max(cursor.count - first, 0) :]
    ]


def _mark(db: sqlite3.Connection, segment: Segment, claimant: str) -> bool:
    """Write the claimant into a segment; return False if the segment has changed or ended."""
    marked = db.execute(
        "UPDATE segments SET claimed_by = ?"
        " WHERE no = ? AND id = ? AND until IS NULL AND claimed_by IS ?",
        (claimant, segment.no, segment.stream_id, segment.claimed_by),
    )
    return marked.rowcount > 0


def _portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the values in portions that one statement can take."""
    for first in range(0, len(values), _VALUES_AT_ONCE):
        yield values[first : first + _VALUES_AT_ONCE]


def _marks(num: int) -> str:
    """Return so many question marks for a statement."""
    return ", ".join("?" * num)
