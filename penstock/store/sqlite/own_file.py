"""This replica's own file, with the locks that make it the owner of the logs in it.

In: the folder. Out: a new file with a connection for its writer, and checkpoints. Everything here
blocks.
"""

import contextlib
import sqlite3

from penstock.store.sqlite.folder import Folder, HeldLock
from penstock.store.sqlite.tables import connect, create

# A claimant or a cleaner holds the file for about 0.1 ms. The event loop waits no longer than this.
BUSY_S = 0.005

# With SQLite's own 2 MiB, the writer reads the steps that it removes from the disk again.
_CACHE_KIB = 16 * 1024


class OwnFile:
    """This replica's file, with its locks. Raises OSError, sqlite3.Error and StartError."""

    def __init__(self, folder: Folder, name: str, synchronous: str, boot: str) -> None:
        self.name = name
        self._path = folder.file(name)
        with folder.locked(), contextlib.ExitStack() as undo:
            self.lease = HeldLock(folder.lease(name))
            undo.callback(self.lease.release)
            self.alive = HeldLock(folder.alive(name))
            undo.callback(self.alive.release)
            undo.callback(folder.remove, name)
            # Nobody sees the file before it has its tables.
            new = folder.new_file(name)
            create(new, synchronous, boot).close()
            new.rename(self._path)
            self.db = connect(self._path, synchronous, BUSY_S)
            undo.callback(self.db.close)
            self.db.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
            self._inode = self._path.stat().st_ino
            undo.pop_all()

    def is_there(self) -> bool:
        """Return False if somebody has removed or moved the file: then nobody else can read it."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False
        except OSError:  # the disk's trouble is for the next write to find
            return True

    def close(self) -> None:
        """Close the file and give back its locks."""
        with contextlib.suppress(sqlite3.Error):
            self.db.close()
        self.lease.release()
        self.alive.release()

    def checkpoint(self, kind: str) -> bool:
        """Write the write-ahead log back into the file, and return True if nobody was in the way.

        `kind` is PASSIVE, or RESTART: then the write-ahead log begins again with the next write.
        Raises sqlite3.Error.
        """
        db = connect(self._path, "NORMAL", BUSY_S)
        try:
            is_busy, _, _ = db.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()
            return not is_busy
        finally:
            db.close()
