"""The files of all replicas: logs as chains of segments, from file to file.

In: ids of logs, and cursors into them. Out: their entries, from file to file along the chain of
claims. Everything here blocks, so it runs in threads. Methods raise sqlite3.Error.
"""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence

from penstock.store.protocol import CLAIMED, TORN, Entry
from penstock.store.sqlite.folder import Folder
from penstock.store.sqlite.log_file import Cursor, Key, LogFile, News, Segment
from penstock.store.sqlite.tables import is_damage

log = logging.getLogger(__name__)


class Files:
    """The files of all replicas of a folder."""

    def __init__(self, folder: Folder, synchronous: str, boot: str, timeout: float) -> None:
        self.folder = folder
        self._boot = boot
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

    def abandoned(self, segments: Iterable[Segment], own: str | None) -> list[Segment]:
        """Return the claimed segments whose claimants died before they wrote the next ones.

        Or whose claimant is this replica (`own`), and the claim was cancelled.
        """
        by_claimant: dict[str, list[Segment]] = {}
        for each in segments:
            if each.claimed_by is not None:
                by_claimant.setdefault(each.claimed_by, []).append(each)
        found: list[Segment] = []
        for name, claimed in by_claimant.items():
            claimant = self.get(name)
            if claimant is None:
                if not self.folder.file(name).exists():
                    found += claimed
                continue
            # In this order: a claimant without a lease writes no segment any more.
            if claimant.lease.is_held():
                claimed = [
                    each for each in claimed if name == own and each.key not in self.claiming
                ]
            there = claimant.keys({each.stream_id for each in claimed})
            found += [each for each in claimed if (each.stream_id, each.epoch + 1) not in there]
        return found

    def claim(self, logs: Collection[Key], claimant: str) -> dict[Key, Entry]:
        """Fence logs in these epochs for a claimant.

        Returns the logs that the claimant gets, each with the entry that it must append first.
        """
        won: list[Segment] = []
        free: dict[str, list[Segment]] = {}
        segments = self.at_epochs(logs)
        abandoned = {each.key for each in self.abandoned(segments, claimant)}
        for each in segments:
            if each.claimed_by == claimant:
                if not self.next([each]):  # an earlier claim was cancelled too late
                    won.append(each)
            elif each.claimed_by is None or each.key in abandoned:
                free.setdefault(each.name, []).append(each)
        for name, segments in free.items():
            if file := self.get(name):
                won += file.fence(segments, claimant)
        return {each.key: CLAIMED if self._has_all(each) else TORN for each in won}

    def _has_all(self, segment: Segment) -> bool:
        file = self.get(segment.name)
        return file is not None and file.has_all(segment, self._boot)

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
