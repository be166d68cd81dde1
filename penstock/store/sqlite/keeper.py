"""Looks after the folder: who has died, which logs are orphans, what can be removed.

In: the files of all replicas. Out: orphans, and a folder that does not grow. Everything here
blocks, so it runs in threads; one call at a time. Methods raise sqlite3.Error and OSError.
"""

import contextlib

from penstock.store.protocol import MAX_GROUP
from penstock.store.sqlite.files import Files
from penstock.store.sqlite.folder import Folder
from penstock.store.sqlite.log_file import LogFile, Segment


class Keeper:
    """One replica's part in looking after the folder."""

    def __init__(self, folder: Folder, files: Files) -> None:
        self._folder = folder
        self._files = files
        self._dead: set[str] = set()
        # The numbers of claimed segments whose logs went on in other files, by their own file.
        self._continued: dict[str, set[int]] = {}

    def orphans(self, is_round: bool, own: str | None) -> list[tuple[str, int]]:
        """Return the orphans, if there may be new ones or it is time to report them again."""
        files = self._files.all()
        dead = {file.name for file in files if not file.lease.is_held()}
        has_new = not dead <= self._dead
        self._dead = dead
        if not has_new and not is_round:
            return []
        self._continued = {file.name: self._continued.get(file.name, set()) for file in files}
        return [
            (each.stream_id, each.epoch) for file in files for each in self._orphans_in(file, own)
        ]

    def _orphans_in(self, file: LogFile, own: str | None) -> list[Segment]:
        """Return a file's segments that nobody owns."""
        found: list[Segment] = []
        with self._files.whatever_is_damaged(file):
            if file.name in self._dead:
                found += file.running()
            # Claimed segments are many, so each is looked at only until its next one is there.
            known = self._continued[file.name]
            claimed = file.claimed(known)
            abandoned = self._files.abandoned(claimed, own)
            found += abandoned
            settled = {each.no for each in claimed if each.claimed_by in self._dead}
            known |= settled - {each.no for each in abandoned}
        return found

    def expired(self, own: str) -> list[int]:
        """Return some segments in this replica's own file whose log's time is over.

        The replica's writer removes them. A log that has had several owners is removed here.
        """
        file = self._files.get(own)
        return self._remove_claimed(file) if file else []

    def clean(self, own: str | None) -> None:
        """Remove what is left of dead replicas: expired logs, and at last their files."""
        self._files.close_removed()
        for file in self._files.all():
            if file.name == own or file.lease.is_held():
                continue
            with self._files.whatever_is_damaged(file):
                while expired := self._remove_claimed(file):
                    file.remove(expired)
                if not file.alive.is_held():
                    self._clean_dead(file)

    def _remove_claimed(self, file: LogFile) -> list[int]:
        """Remove some expired logs that began in other files; return the segments of the rest."""
        expired = file.expired()
        for _, stream_id, epoch in expired:
            if epoch > 1:
                self._files.remove(stream_id)
        return [no for no, _, epoch in expired if epoch == 1]

    def _clean_dead(self, file: LogFile) -> None:
        claimed = [each for each in file.running() if each.epoch > 1]
        for first in range(0, len(claimed), MAX_GROUP):
            group = claimed[first : first + MAX_GROUP]
            # After a power loss, the claim that led here may be gone. Then this is nobody's log.
            # (Another replica may claim it meanwhile, so only its place counts.)
            reached = self._files.at_epochs([each.key for each in group])
            places = {(each.name, each.no) for each in reached}
            if lost := [each.no for each in group if (each.name, each.no) not in places]:
                file.remove(lost)
        if file.is_empty():
            with contextlib.suppress(BlockingIOError), self._folder.locked(wait=False):
                self._folder.remove(file.name)
