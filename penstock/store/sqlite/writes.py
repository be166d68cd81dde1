"""What this replica's file gets: logs that it owns, writes, and the transactions that they become.

In: entries and statements. Out: one transaction of SQLite for all writes that wait. Only the writer
uses this.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from penstock.store.protocol import Entry, StoredLog
from penstock.store.sqlite.tables import Statement, encode, transaction

_PAGE_BYTES = 4096


class OwnLog(StoredLog):
    """A log, or one epoch of it, that this replica owns or has owned."""

    __slots__ = ("is_lost", "no", "num_paged", "recent")

    def __init__(self, stream_id: str, epoch: int, no: int) -> None:
        super().__init__(stream_id, epoch)
        self.no = no
        self.is_lost = False
        self.num_paged = 0
        self.recent: list[Entry] = []
        """The stored entries that are in no page yet."""


@dataclass(slots=True)
class Write:
    """What one call wants to be written."""

    entries: Sequence[tuple[OwnLog, Entry]] = ()
    statements: list[Statement] = field(default_factory=list)
    ended: OwnLog | None = None
    """The log whose last entry this is; the statements say so."""
    then: Callable[[], None] | None = None
    failed: Callable[[], None] | None = None
    """Called instead of `then` if the write was given up."""


@dataclass(slots=True)
class Transaction:
    """The writes of one transaction, as SQL."""

    num_writes: int
    step: int
    entries: bytes = b""
    statements: list[Statement] = field(default_factory=list)
    paged: list[tuple[OwnLog, list[Entry]]] = field(default_factory=list)
    keep_from: int = 0

    @property
    def num_bytes(self) -> int:
        """About how many bytes it adds to the write-ahead log."""
        values = [value for _, values in self.statements for value in values]
        texts = sum(len(value) for value in values if isinstance(value, bytes))
        num_rows = 3 + 2 * len(self.statements) + 2 * len(self.paged)
        return len(self.entries) + texts + num_rows * _PAGE_BYTES

    def run(self, db: sqlite3.Connection) -> None:
        """Write it. Raises sqlite3.Error; IntegrityError if another replica has added a step."""
        with transaction(db, "BEGIN IMMEDIATE"):
            for statement, values in self.statements:
                db.execute(statement, values).fetchall()  # a vacuum goes on while it is asked
            if self.entries:
                db.execute("INSERT INTO steps VALUES (?, ?)", (self.step, self.entries))
                for each, entries in self.paged:
                    db.execute(
                        "INSERT INTO pages VALUES (?, ?, ?, ?, ?)",
                        (each.no, each.num_paged, len(entries), self.step, encode(entries)),
                    )
                if self.keep_from:
                    db.execute("DELETE FROM steps WHERE step < ?", (self.keep_from,))
