"""The folder that the replicas of one machine share, and the locks that say who is alive.

In: the folder's path. Out: a folder that is private and has a known format; the names of the
replicas' files; locks. A replica's file `NAME.log` has two locks, `NAME.lease` and `NAME.alive`: a
replica that has given its lease back may still follow logs. They are locked (flock) before the file
is there, and never again by another process, so a file whose lease is free has lost its owner for
good. The kernel drops the locks when the process ends, however it ends. A *stopped* process
(SIGSTOP) keeps them.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import StartError

FORMAT = 1
"""The version of everything in the folder."""

SUFFIX = ".log"
SHARED = "shared.db"
_FORMAT_FILE = "format"
_LOCK_FILE = "lock"
# A file of this kind is there for a moment when a replica starts, also before the others.
_TRIAL = ".trial"
_WORDS = "penstock log format "
# An empty file system has this folder.
_STRANGERS = {"lost+found"}


class HeldLock:
    """A lock file that this process holds. Raises OSError, BlockingIOError if another holds it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise
        self._is_held = True

    def release(self) -> None:
        """Give the lock back. May be called twice."""
        if self._is_held:
            self._is_held = False
            os.close(self._file)


class OthersLock:
    """A lock that another process holds until it ends or gives it back. Any thread may ask."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._is_free = False
        # A file that two threads close may be another one the second time.
        self._threads = threading.Lock()

    def is_held(self) -> bool:
        """Return True while the other process holds it; once it is free, it stays free."""
        with self._threads:
            if not self._is_free and self._is_locked():
                return True
            self._is_free = True
            self._close()
            return False

    def _is_locked(self) -> bool:
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            # A shared lock, so that two processes that look at once do not see each other.
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def close(self) -> None:
        """Close the file."""
        with self._threads:
            self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Folder:
    """The folder. `patience` is how long, in seconds, it waits for another process's lock on it."""

    def __init__(self, path: Path, patience: float) -> None:
        self.path = path
        self._patience = patience

    def file(self, name: str) -> Path:
        """Return the path of a replica's file."""
        return self.path / f"{name}{SUFFIX}"

    def new_file(self, name: str) -> Path:
        """Return the path of a replica's file while it is made."""
        return self.path / f"{name}.new"

    def lease(self, name: str) -> Path:
        """Return the path of a replica's lease."""
        return self.path / f"{name}.lease"

    def alive(self, name: str) -> Path:
        """Return the path of the lock that a replica holds while it lives."""
        return self.path / f"{name}.alive"

    def names(self) -> list[str]:
        """Return the names of all replicas' files. Raises OSError."""
        return [
            entry.name.removesuffix(SUFFIX)
            for entry in os.scandir(self.path)
            if entry.name.endswith(SUFFIX)
        ]

    @contextlib.contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[None]:
        """Hold the folder's lock: files come and go only under it.

        Raises OSError, BlockingIOError if another process holds it (for longer than `patience`).
        """
        give_up = time.monotonic() + (self._patience if wait else 0.0)
        while True:
            try:
                lock = HeldLock(self.path / _LOCK_FILE)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
        try:
            yield
        finally:
            lock.release()

    def remove(self, name: str) -> None:
        """Remove a replica's file, then its locks. Call it under the folder's lock."""
        locks = {self.lease(name), self.alive(name)}
        for path in sorted(self.path.glob(f"{name}.*"), key=lambda path: path in locks):
            path.unlink(missing_ok=True)

    # The start.

    def prepare(self) -> None:
        """Make the folder, if need be, and check it. Raises StartError."""
        try:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
            self._check_strangers()
            self._make_private()
            self._check_locks()
            with self.locked():
                self._check_format()
                self._remove_unfinished()
        except OSError as error:
            raise start_error(self.path, error) from error

    def _check_strangers(self) -> None:
        """Refuse a folder that holds something else: its permissions are about to change."""
        found = (entry.name for entry in os.scandir(self.path))
        names = {name for name in found if not name.endswith(_TRIAL)}
        if names & {_FORMAT_FILE, _LOCK_FILE} or names <= _STRANGERS:
            return
        raise StartError(
            f"The folder {self.path} holds other files, and no logs of Penstock.",
            "Name an empty folder, or one that does not exist yet.",
        )

    def _make_private(self) -> None:
        with contextlib.suppress(PermissionError):  # it is another user's; our files are private
            self.path.chmod(0o700)

    def _check_locks(self) -> None:
        """Find a file system that takes every lock, or none: there, two owners could be alike."""
        path = self.path / f"{os.getpid()}-{time.monotonic_ns()}{_TRIAL}"
        try:
            first = HeldLock(path)
            try:
                with contextlib.suppress(BlockingIOError):
                    HeldLock(path).release()
                    raise _no_locks(self.path)
            finally:
                first.release()
        except OSError as error:
            if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}:
                raise _no_locks(self.path) from error
            raise
        finally:
            path.unlink(missing_ok=True)

    def _check_format(self) -> None:
        path = self.path / _FORMAT_FILE
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            new = path.with_name(f"{_FORMAT_FILE}.new")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{_WORDS}{FORMAT}\n")
            new.rename(path)  # so the file is never there without its text
            return
        version = text.removeprefix(_WORDS).strip()
        if version != str(FORMAT):
            shown = version if version.isdecimal() and len(version) < 10 else "unknown"
            raise StartError(
                f"The logs in {self.path} have another format ({shown}; this Penstock reads"
                f" {FORMAT}).",
                "Start the version of Penstock that wrote them, or name another folder.",
            )

    def _remove_unfinished(self) -> None:
        """Remove what replicas have left that died before their file was there."""
        for lease in self.path.glob("*.lease"):
            name = lease.name.removesuffix(".lease")
            if not self.file(name).exists() and not OthersLock(lease).is_held():
                self.remove(name)


def start_error(path: Path, error: OSError) -> StartError:
    """Return the StartError for a folder that cannot be used."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StartError(
                f"The disk of the folder {path} is full.",
                "Free some space, or name another folder.",
            )
        case errno.EEXIST | errno.ENOTDIR:
            return StartError(f"{path} is not a folder.", "Name a folder for the logs.")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StartError(
                f"Penstock may not write to the folder {path}.",
                "Give its user the permission, or name another folder.",
            )
        case errno.EAGAIN:
            return StartError(
                f"Another process holds the folder {path} locked.",
                "Look for a stopped Penstock process (`ps -C penstock`) and end it.",
            )
    return StartError(
        f"The folder {path} cannot be used: {error.strerror}.", "Name another folder."
    )


def _no_locks(path: Path) -> StartError:
    return StartError(
        f"The file system of the folder {path} has no locks that work.",
        "Name a folder on a local disk; for several machines use Redis.",
    )
