"""Private folders for engines' processes, of which none stays behind.

In: a server that starts engines. Out: a folder for each engine's process, for its sockets. The
server removes a process's folder when the process has ended. If the server itself is killed, the
next server of this user removes what it left: a server's folder is locked (flock) as long as the
server runs, and the kernel unlocks it with the server's end. (A process id would not tell: servers
in several containers can share a temporary directory. systemd-tmpfiles leaves locked folders alone,
too.)
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "penstock-server-"
VARIABLE = "PENSTOCK_ENGINE_FOLDER"
"""The environment variable that names its folder to an engine's process."""


class ServerFolder:
    """A server's folder in the temporary directory, locked while the server runs.

    Raises OSError if there is no room for a folder.
    """

    def __init__(self) -> None:
        self._num_made = 0
        # It gets its name when it is locked, so that no other server takes it for one left behind.
        unnamed = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
        self._lock = os.open(unnamed, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = unnamed.with_name(unnamed.name[1:])
        unnamed.rename(self.path)

    def new(self) -> Path:
        """Return a new, empty folder for an engine's process. Raises OSError."""
        self._num_made += 1
        folder = self.path / str(self._num_made)
        folder.mkdir(0o700, parents=True)
        return folder

    def clear(self) -> None:
        """Remove the folders of all processes: they have ended."""
        for each in self.path.glob("[0-9]*"):
            shutil.rmtree(each, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder and all folders in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def own_folder() -> Path:
    """Return the folder of this engine's process; outside a server a new one, made here."""
    return Path(os.environ.get(VARIABLE) or tempfile.mkdtemp(prefix=f".{PREFIX}"))


def remove_left_behind() -> None:
    """Remove the folders that killed servers of this user have left in the temporary directory."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is no folder, in use, or being removed
            _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    """Remove a folder of this user unless its server runs. Raises OSError if it does."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
