"""What stands in a replica's file, and how a connection to it is opened.

A log is a chain of *segments*, one for each epoch, each in the file of that epoch's owner. A claim
writes the claimant's name into the claimed segment, and so it points to the next one: `claimed_by`
names the file, and the next segment has the same id and the next epoch.

A *step* is one write of the owner: a list `[segment, entry, segment, entry, …]` in MessagePack. Nil
in an entry's place says that the segment was claimed. Steps have
consecutive numbers, and this is the fence: a claim adds a step too, so the owner's next step has a
number that is taken, and its transaction fails. Old steps are removed, because each segment's
entries are written again, together, in a *page*.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import StartError
from penstock.store.protocol import Entry

KEPT_STEPS = 128
"""So many steps are kept for followers. Those who fall further behind read the pages."""

PAGED_STEPS = 64
"""Within so many writes, the entries of a segment are written into a page."""

REMOVED_STEPS = 16
"""Steps are removed so many at once: each removal writes the lists of free space again."""

# A disk with less than this is full: SQLite needs some room for each transaction.
_FULL_BYTES = 256 * 1024

_SCHEMA = """
CREATE TABLE segments (
    no INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    opened INTEGER NOT NULL,  -- the last step before it
    until REAL,               -- when an ended log goes, in seconds since 1970
    claimed_by TEXT
);
CREATE UNIQUE INDEX segments_id ON segments (id, epoch);
CREATE INDEX segments_running ON segments (no) WHERE until IS NULL;
CREATE INDEX segments_until ON segments (until) WHERE until IS NOT NULL;
CREATE INDEX segments_claimed ON segments (no) WHERE claimed_by IS NOT NULL;
CREATE TABLE headers (segment INTEGER PRIMARY KEY, header BLOB NOT NULL);
CREATE TABLE steps (step INTEGER PRIMARY KEY, entries BLOB NOT NULL);
CREATE TABLE pages (
    segment INTEGER NOT NULL,
    first INTEGER NOT NULL,   -- the index of its first entry in the segment
    number INTEGER NOT NULL,
    step INTEGER NOT NULL,    -- the entries up to this step are in pages
    entries BLOB NOT NULL,
    PRIMARY KEY (segment, first)
) WITHOUT ROWID;
CREATE TABLE follows (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE life (boot TEXT NOT NULL, is_synced INTEGER NOT NULL);
CREATE TABLE published (one INTEGER PRIMARY KEY CHECK (one = 1), value BLOB NOT NULL);
"""

Statement = tuple[str, tuple[Any, ...]]
"""SQL and its values."""

encode = msgspec.msgpack.Encoder().encode
_decode_page = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_step = msgspec.msgpack.Decoder(list[int | bytes | None]).decode


def create(path: Path, synchronous: str, boot: str) -> sqlite3.Connection:
    """Make a replica's file, with its first step. Raises sqlite3.Error, OSError and StartError.

    `boot` names the life of the folder (see `life`).
    """
    with closed_after_failure(create_database(path, synchronous, _SCHEMA)) as db:
        db.execute("INSERT INTO life VALUES (?, ?)", (boot, synchronous == "FULL"))
        db.execute("INSERT INTO steps VALUES (1, ?)", (encode([]),))
    return db


def life_of(db: sqlite3.Connection) -> tuple[str, bool]:
    """Return the life in which a replica's file was made, and whether its writes are synced.

    A file of an earlier version of Penstock does not say it: "" counts as every life.
    """
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'life'").fetchone():
        return "", False
    boot, is_synced = db.execute("SELECT boot, is_synced FROM life").fetchone()
    return boot, bool(is_synced)


def create_database(path: Path, synchronous: str, schema: str) -> sqlite3.Connection:
    """Make a private file with tables, unless it is there. Raises sqlite3.Error and StartError."""
    # SQLite's other files get the same permissions. A file that is there stays closed: to close it
    # would give up the locks that another connection of this process has on it.
    if not path.exists():
        path.touch(0o600)
    with closed_after_failure(connect(path, synchronous)) as db:
        if db.execute("PRAGMA user_version").fetchone() != (0,):
            return db
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StartError(
                f"The file system of the folder {path.parent} cannot share memory between"
                " processes.",
                "Name a folder on a local disk; for several machines use Redis.",
            )
        db.executescript(f"BEGIN; {schema} PRAGMA user_version = 1; COMMIT;")
    return db


def connect(path: Path, synchronous: str, timeout: float = 5.0) -> sqlite3.Connection:
    """Open a file that is there. `timeout` is the wait for locks, in seconds. Raises sqlite3.Error.

    The connection never checkpoints by itself: this needs a sync to the disk, which takes long.
    """
    opened = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=timeout,
        check_same_thread=False,  # each has a lock, or is used by one thread after the other
    )
    with closed_after_failure(opened) as db:
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA journal_size_limit = 67108864")
    return db


@contextlib.contextmanager
def closed_after_failure(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Close a connection if the block raises. Until then, a file that was removed takes space."""
    try:
        yield db
    except BaseException:
        db.close()
        raise


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    """Run statements in a transaction: all of them, or none. Raises sqlite3.Error."""
    try:
        db.execute(begin)
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def decode_page(blob: bytes) -> list[Entry]:
    """Return a page's entries. Raises sqlite3.Error if they are damaged."""
    try:
        return _decode_page(blob)
    except msgspec.DecodeError as error:
        raise _Damage("a page cannot be read") from error


def decode_step(blob: bytes) -> list[int | Entry | None]:
    """Return a step: segments and entries by turns. Raises sqlite3.Error if it is damaged."""
    try:
        return _decode_step(blob)
    except msgspec.DecodeError as error:
        raise _Damage("a step cannot be read") from error


class _Damage(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def removal(segments: Sequence[int]) -> list[Statement]:
    """Return the statements that remove segments, and give some free space back."""
    removed = [
        (f"DELETE FROM {table} WHERE {column} = ?", (no,))  # noqa: S608
        for no in segments
        for table, column in (("pages", "segment"), ("headers", "segment"), ("segments", "no"))
    ]
    return [*removed, ("PRAGMA incremental_vacuum(64)", ())]


def is_damage(error: sqlite3.Error) -> bool:
    """Return True if a file is damaged, so that reading it again cannot help."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_busy(error: sqlite3.Error) -> bool:
    """Return True if another process or thread held the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def reason(error: Exception, folder: Path) -> str:
    """Say in a sentence why SQLite, or the folder, did not do what it should."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # SQLite names only some of the failures of a full disk so.
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(folder)):
        return "The disk with the logs is full."
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return "Another process holds the file with the logs locked."
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return "The file with the logs is damaged."
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN}:
        return "The file with the logs cannot be opened for writing."
    return "The disk with the logs has failed a read or a write."


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < _FULL_BYTES
    return False
