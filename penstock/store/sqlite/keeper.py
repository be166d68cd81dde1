"""Looks after the folder: who has died, which logs are orphans, what can be removed.

In: the files of all replicas. Out: orphans, and a folder that does not grow. Everything here
blocks, so it runs in threads; one call at a time. Methods raise sqlite3.Error and OSError.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Iterator

from penstock.store.sqlite.files import Files, LogFile, Segment
from penstock.store.sqlite.folder import SUFFIX, Folder
from penstock.store.sqlite.tables import is_damage

log = logging.getLogger(__name__)


class Keeper:
    """One replica's part in looking after the folder."""

    def __init__(self, folder: Folder, files: Files, replica: str) -> None:
        self.num_others = 0
        """How many other replicas had a lease at the last look."""
        self._folder = folder
        self._files = files
        self._replica = replica
        self._dead: set[str] = set()
        self._damaged: set[str] = set()

    def orphans(self, is_round: bool) -> list[tuple[str, int]]:
        """Return the orphans, if there may be new ones or it is time to report them again."""
        files = self._files.all()
        held = [file for file in files if file.lease.is_held()]
        self.num_others = len({file.replica for file in held} - {self._replica})
        dead = {file.name for file in files} - {file.name for file in held}
        has_new = not dead <= self._dead
        self._dead = dead
        if not has_new and not is_round:
            return []
        return [
            (each.stream_id, each.epoch) for file in files for each in self._orphans_in(file, dead)
        ]

    def _orphans_in(self, file: LogFile, dead: set[str]) -> list[Segment]:
        """Return a file's segments that nobody owns."""
        found: list[Segment] = []
        with self._whatever_is_damaged(file):
            if file.name in dead:
                found += file.running()
            found += [each for each in file.claimed() if self._files.is_abandoned(each)]
        return found

    def clean(self, own: str | None) -> None:
        """Remove ended logs whose time is over, and the files of dead replicas without a log."""
        self._files.close_removed()
        for file in self._files.all():
            is_own = file.name == own
            if not is_own and file.lease.is_held():
                continue  # its owner does it
            with self._whatever_is_damaged(file):
                self._remove_expired(file)
                if not is_own and not file.alive.is_held():
                    self._clean_dead(file)

    def _remove_expired(self, file: LogFile) -> None:
        while expired := file.expired():
            file.remove([each for each in expired if each[1] == 1])
            for stream_id, epoch in expired:
                if epoch > 1:
                    self._files.remove(stream_id)
            file.vacuum()

    def _clean_dead(self, file: LogFile) -> None:
        for each in file.running():
            # After a power loss, the claim that led here may be gone. Then this is nobody's log.
            if each.epoch > 1 and self._files.at_epoch(each.stream_id, each.epoch) != each:
                file.remove([(each.stream_id, each.epoch)])
        if file.is_empty():
            with contextlib.suppress(BlockingIOError), self._folder.locked(wait=False):
                self._folder.remove(file.name)

    @contextlib.contextmanager
    def _whatever_is_damaged(self, file: LogFile) -> Iterator[None]:
        """Leave a damaged file alone, and go on with the others."""
        try:
            yield
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            if file.name not in self._damaged:
                self._damaged.add(file.name)
                log.error("%s%s is damaged; its streams are lost. Remove it.", file.name, SUFFIX)
