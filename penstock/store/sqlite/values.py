"""The small values that replicas share: one file that all of them read and write.

In: names and values. Out: values until their time is over. Everything here blocks, so it runs in
threads. Methods raise sqlite3.Error.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator

from penstock.store.sqlite.folder import SHARED, Folder
from penstock.store.sqlite.tables import connect, create_database, transaction

_SCHEMA = """
CREATE TABLE vals (name TEXT PRIMARY KEY, value BLOB NOT NULL, until REAL NOT NULL);
CREATE INDEX vals_until ON vals (until);
"""


class Values:
    """The values. `timeout` is the wait for other replicas' transactions, in seconds."""

    def __init__(self, folder: Folder, synchronous: str, timeout: float) -> None:
        self._folder = folder
        self._synchronous = synchronous
        self._timeout = timeout
        self._lock = threading.Lock()
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        path = self._folder.path / SHARED
        with self._folder.locked():
            create_database(path, self._synchronous, _SCHEMA).close()
        db = connect(path, self._synchronous, self._timeout)
        # Values are few, and no token waits for them: SQLite may checkpoint whenever it wants.
        db.execute("PRAGMA wal_autocheckpoint = 1000")
        return db

    def reopen(self) -> None:
        """Open the file anew, because it may have been removed."""
        with self._lock:
            self._db.close()
            self._db = self._open()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Change values, alone. The values whose time is over go first."""
        with self._lock, transaction(self._db, "BEGIN IMMEDIATE"):
            self._db.execute("DELETE FROM vals WHERE until <= ?", (time.time(),))
            yield self._db

    def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        """Store a value unless the name has one; return the one it has."""
        with self._change() as db:
            row = db.execute("SELECT value FROM vals WHERE name = ?", (name,)).fetchone()
            if row is None:
                self._put(db, name, value, ttl)
        return row and bytes(row[0])

    def put(self, name: str, value: bytes, ttl: float) -> None:
        """Store a value."""
        with self._change() as db:
            self._put(db, name, value, ttl)

    @staticmethod
    def _put(db: sqlite3.Connection, name: str, value: bytes, ttl: float) -> None:
        db.execute("INSERT OR REPLACE INTO vals VALUES (?, ?, ?)", (name, value, time.time() + ttl))

    def get(self, name: str) -> bytes | None:
        """Return a value."""
        with self._lock:
            row = self._db.execute(
                "SELECT value FROM vals WHERE name = ? AND until > ?", (name, time.time())
            ).fetchone()
        return row and bytes(row[0])

    def delete(self, name: str) -> None:
        """Remove a value."""
        with self._change() as db:
            db.execute("DELETE FROM vals WHERE name = ?", (name,))
