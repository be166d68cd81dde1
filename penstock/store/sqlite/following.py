"""Passes on what replicas append to the logs that this one follows.

In: cursors that have read their logs so far. Out: calls with the new entries, in order, each once.
One task reads for all followers: every `TAIL_S` seconds each file that has one, once.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from penstock.store.protocol import Entry
from penstock.store.sqlite.files import Files, by_file_of
from penstock.store.sqlite.log_file import Cursor, News
from penstock.store.sqlite.tables import reason

log = logging.getLogger(__name__)

TAIL_S = 0.02


class Followed:
    """A log that is followed (`Following` in the protocol)."""

    def __init__(
        self,
        header: Entry,
        cursor: Cursor,
        on_entries: Callable[[Sequence[Entry]], None],
        on_close: Callable[["Followed"], None],
    ) -> None:
        self.header = header
        self.cursor = cursor
        self.on_entries = on_entries
        self._on_close: Callable[[Followed], None] | None = on_close

    @property
    def epoch(self) -> int:
        """The log's epoch, as far as its entries were read."""
        return self.cursor.epoch

    @property
    def is_closed(self) -> bool:
        """True after `close`."""
        return self._on_close is None

    def close(self) -> None:
        """Read no more of it. May be called twice."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self)


class Followers:
    """All followed logs of this replica."""

    def __init__(self, files: Files, threads: Executor) -> None:
        self._files = files
        self._threads = threads
        self._followed: dict[int, Followed] = {}  # by the id of their cursor
        self._has_some = asyncio.Event()
        self._is_failing = False

    def add(self, followed: Followed) -> None:
        """Pass new entries on, from the cursor on."""
        self._followed[id(followed.cursor)] = followed
        self._has_some.set()

    def remove(self, followed: Followed) -> None:
        """Pass nothing on any more."""
        self._followed.pop(id(followed.cursor), None)
        if not self._followed:
            self._has_some.clear()

    async def run(self) -> None:
        """Read what is new in the followed logs, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._has_some.wait()
            await asyncio.sleep(TAIL_S)
            cursors = [each.cursor for each in self._followed.values()]
            for cursor, entries in await loop.run_in_executor(self._threads, self._read, cursors):
                followed = self._followed.get(id(cursor))
                if entries and followed is not None:
                    _pass_on(followed, entries)

    def _read(self, cursors: Sequence[Cursor]) -> News:
        """Read what is new (in a thread). A file that cannot be read is tried again next time."""
        news: News = []
        try:
            for name, same in by_file_of(cursors).items():
                if file := self._files.get(name):
                    with self._files.whatever_is_damaged(file):
                        file.read_new(same, news)
            self._files.read_on(self._files.advance(cursors), news)
            self._is_failing = False
        except sqlite3.Error as error:
            if not self._is_failing:
                log.warning(
                    "%s Streams of other replicas wait for it.",
                    reason(error, self._files.folder.path),
                )
            self._is_failing = True
        return news


def _pass_on(followed: Followed, entries: Sequence[Entry]) -> None:
    try:
        followed.on_entries(entries)
    except Exception:
        log.exception("a follower of a stream failed; the other followers go on")
