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
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.store.protocol import Entry
from penstock.store.sqlite.folder import Folder, OthersLock
from penstock.store.sqlite.tables import (
    connect,
    decode_page,
    decode_step,
    encode,
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
_FIND = (
    "SELECT no, id, epoch, claimed_by FROM segments"
    " WHERE id IN ({}) AND (until IS NULL OR until > ?)"
)
_STEPS_AFTER = "SELECT step, entries FROM steps WHERE step > ? ORDER BY step"


Key = tuple[str, int]
"""A log's id and an epoch."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What is known of one epoch of a log."""

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

    def find(self, keys: Collection[Key]) -> dict[Key, Segment]:
        """Return the segments of these logs and epochs that are here and whose time is not over."""
        ids = {stream_id for stream_id, _ in keys}
        rows = self._rows(_FIND.format(_marks(len(ids))), *ids, time.time())
        segments = [Segment(self.name, *row) for row in rows]
        return {each.key: each for each in segments if each.key in keys}

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

    def claimed(self) -> list[Segment]:
        """Return the segments that were claimed."""
        return self._segments("claimed_by IS NOT NULL")

    def _segments(self, condition: str) -> list[Segment]:
        rows = self._rows(
            f"SELECT no, id, epoch, claimed_by FROM segments WHERE {condition}"  # noqa: S608
        )
        return [Segment(self.name, *row) for row in rows]

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
    """Those of them that the cursor has not read."""


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


def _marks(num: int) -> str:
    """Return so many question marks for a statement."""
    return ", ".join("?" * num)


class Files:
    """The files of all replicas of a folder."""

    def __init__(self, folder: Folder, synchronous: str, timeout: float) -> None:
        self.folder = folder
        self._synchronous = synchronous
        self._timeout = timeout
        self.claiming: set[Key] = set()
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

    def find(self, stream_ids: Iterable[str]) -> dict[str, Segment]:
        """Return the first segments of logs."""
        missing = {(stream_id, 1) for stream_id in stream_ids}
        with self._lock:
            known = list(self._files.values())
        found = self._find_in(known, missing)
        if missing:  # the folder is listed only for logs that are in no file that is known already
            found |= self._find_in(self.all(), missing)
        return {each.stream_id: each for each in found.values()}

    def _find_in(self, files: Sequence[LogFile], missing: set[Key]) -> dict[Key, Segment]:
        """Find segments; leave in `missing` what is not there."""
        found: dict[Key, Segment] = {}
        for file in files:
            if missing:
                with self.whatever_is_damaged(file):
                    found |= file.find(missing)
                    missing -= found.keys()
        return found

    @contextlib.contextmanager
    def whatever_is_damaged(self, file: LogFile) -> Iterator[None]:
        """Pass over a damaged file, and go on with the others."""
        try:
            yield
        except sqlite3.Error as error:
            self.note_damage(file.name, error)

    def next(self, segments: Iterable[Segment]) -> dict[Key, Segment]:
        """Return the segments of the next epochs, as far as they are there."""
        by_file: dict[str, set[Key]] = {}
        for each in segments:
            if each.claimed_by is not None:
                by_file.setdefault(each.claimed_by, set()).add((each.stream_id, each.epoch + 1))
        found: dict[Key, Segment] = {}
        for name, keys in by_file.items():
            if file := self.get(name):
                found |= file.find(keys)
        return found

    def at_epochs(self, logs: Collection[Key]) -> list[Segment]:
        """Return the segments of logs at these epochs, as far as their chains reach them."""
        found: list[Segment] = []
        segments = list(self.find(stream_id for stream_id, _ in logs).values())
        while segments:
            found += [each for each in segments if each.key in logs]
            segments = list(self.next(segments).values())
        return found

    def is_abandoned(self, segment: Segment, own: str | None) -> bool:
        """Return True if a segment's claimant died before it wrote the next one.

        Or if it is this replica (`own`), and the claim was cancelled.
        """
        if segment.claimed_by is None:
            return False
        claimant = self.get(segment.claimed_by)
        if claimant is None:
            return not self.folder.file(segment.claimed_by).exists()
        is_own = claimant.name == own and segment.key not in self.claiming
        # In this order: a claimant without a lease writes no segment any more.
        return (is_own or not claimant.lease.is_held()) and not self.next([segment])

    def claim(self, logs: Collection[Key], claimant: str) -> set[Key]:
        """Fence logs in these epochs for a claimant; return those that it gets."""
        won: set[Key] = set()
        free: dict[str, list[Segment]] = {}
        for each in self.at_epochs(logs):
            if each.claimed_by == claimant:
                if not self.next([each]):  # an earlier claim was cancelled too late
                    won.add(each.key)
            elif each.claimed_by is None or self.is_abandoned(each, claimant):
                free.setdefault(each.name, []).append(each)
        for name, segments in free.items():
            if file := self.get(name):
                won |= {each.key for each in file.fence(segments, claimant)}
        return won

    def headers(self, stream_ids: Iterable[str]) -> dict[str, tuple[Segment, Entry]]:
        """Return the first segments of logs, and their headers."""
        by_file: dict[str, list[Segment]] = {}
        for segment in self.find(stream_ids).values():
            by_file.setdefault(segment.name, []).append(segment)
        found: dict[str, tuple[Segment, Entry]] = {}
        for name, segments in by_file.items():
            file = self.get(name)
            headers = file.headers([each.no for each in segments]) if file else {}
            for each in segments:
                if each.no in headers:
                    found[each.stream_id] = each, headers[each.no]
        return found

    def read_on(self, cursors: Sequence[Cursor], news: News) -> None:
        """Read all entries that cursors have not read, from file to file, and move them.

        If it raises, all entries of the cursors that it has moved are in `news`.
        """
        while cursors:
            for name, same in by_file_of(cursors).items():
                if file := self.get(name):
                    file.read(same, news)
            cursors = self.advance(cursors)

    def advance(self, cursors: Sequence[Cursor]) -> list[Cursor]:
        """Move cursors from segments that were claimed to the next ones, as far as they are there.

        Returns those that it has moved.
        """
        claimed: list[Segment] = []
        for name, same in by_file_of(each for each in cursors if each.is_fenced).items():
            if file := self.get(name):
                claimed += file.find({(each.stream_id, each.epoch) for each in same}).values()
        following = self.next(claimed)
        moved: list[Cursor] = []
        for cursor in cursors:
            new = following.get((cursor.stream_id, cursor.epoch + 1))
            if cursor.is_fenced and new is not None:
                cursor.name, cursor.no, cursor.epoch = new.name, new.no, new.epoch
                cursor.count = cursor.step = 0
                cursor.is_fenced = False
                moved.append(cursor)
        return moved

    def remove(self, stream_id: str) -> None:
        """Remove an ended log from all files, its first segment first.

        Whoever finds a claimed segment whose next one is gone takes the log for abandoned. So the
        next one goes after it.
        """
        found = [(*segment, file) for file in self.all() for segment in file.segments(stream_id)]
        if any(has_ended for _, _, has_ended, _ in found):
            for _, no, _, file in sorted(found, key=lambda each: each[0]):
                file.remove([no])


def by_file_of(cursors: Iterable[Cursor]) -> dict[str, list[Cursor]]:
    """Return cursors by the names of the files in which they are."""
    by_file: dict[str, list[Cursor]] = {}
    for cursor in cursors:
        by_file.setdefault(cursor.name, []).append(cursor)
    return by_file
