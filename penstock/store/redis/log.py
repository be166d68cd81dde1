"""A log as its owner holds it: the entries, to write them again, and the bytes of its commands."""

from collections.abc import Sequence

from penstock.store.protocol import ENTRY_BYTES, Entry, StoredLog
from penstock.store.redis.layout import LIVES, LOGS, OPEN, REPLICAS, SAFETY_MS, command
from penstock.store.redis.scripts import ENDING, OPENING

ENTRY_FORMAT = b"%b%d\r\n$1\r\ne\r\n$%d\r\n%b\r\n"
"""The command that adds an entry: the log's `head`, the entry's number, its length, the entry."""

NEVER = 1 << 53
PAST_ENTRY_BYTES = 192
"""The memory of an entry of an earlier epoch with its id beside it, without its bytes."""


class RedisLog(StoredLog):
    """A log that this replica owns, or owned.

    `entries` are those of its own epoch: the header or that of the claim, then what was appended.
    `history` are those of earlier epochs, with their ids.
    """

    __slots__ = (
        "_num_counted",
        "_num_counted_bytes",
        "entries",
        "head",
        "history",
        "is_closed",
        "is_lost",
        "is_over",
        "key",
        "retain_ms",
        "wider_at",
    )

    def __init__(
        self,
        stream_id: str,
        epoch: int,
        first: Entry,
        history: Sequence[tuple[bytes, Entry]] = (),
    ) -> None:
        super().__init__(stream_id, epoch)
        self.key = LOGS + stream_id
        self.entries: list[Entry] = [first]
        self.history = history
        self.is_closed = False
        """Whether it takes no more entries: it is lost, or its last entry was appended."""
        self.is_lost = False
        self.is_over = False
        """Whether the store has confirmed its last entry."""
        self.retain_ms: int | None = None
        """How long the log stays after its end; None until it is ended."""
        self._num_counted = 0
        self._num_counted_bytes = sum(PAST_ENTRY_BYTES + len(entry) for _, entry in history)
        self.head = b""
        self.wider_at = 0
        self.widen()

    def widen(self) -> None:
        """Compose `head` anew, because the entries' numbers have one more digit.

        A command states the length of an entry's id before the id, so `head` contains it.
        """
        self.wider_at = self.wider_at * 10 or 10
        epoch = str(self.epoch)
        length = len(epoch) + len(str(self.wider_at - 1)) + 1
        key = self.key.encode()
        self.head = b"*6\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n$%d\r\n%b-" % (
            len(key),
            key,
            length,
            epoch.encode(),
        )

    @property
    def before(self) -> bytes:
        """The id of the last entry of earlier epochs."""
        return self.history[-1][0] if self.history else b""

    @property
    def last_number(self) -> int:
        """The number of the last entry if the log is ended, else more than any number."""
        return NEVER if self.retain_ms is None else len(self.entries) - 1

    def command(self, number: int, tenure: str) -> bytes:
        """Return the command that writes one entry of the own epoch."""
        entry, keys = self.entries[number], [self.key, OPEN + tenure]
        if number == 0 and self.epoch == 1:
            keys += (REPLICAS, LIVES)
            return OPENING.call(keys, self.stream_id, entry, tenure, SAFETY_MS)
        entry_id = f"{self.epoch}-{number}"
        if self.retain_ms is not None and number == self.last_number:
            return ENDING.call(keys, self.stream_id, entry_id, entry, self.retain_ms)
        return command("XADD", self.key, "NOMKSTREAM", entry_id, "e", entry)

    def written(self, number: int) -> list[bytes]:
        """Return ids and entries, in turn, of everything up to this number of the own epoch."""
        words = [word for pair in self.history for word in pair]
        for each in range(number + 1):
            words += (b"%d-%d" % (self.epoch, each), self.entries[each])
        return words

    def num_bytes(self) -> int:
        """Return how much memory the entries take, in bytes. Each is counted once."""
        new = self.entries[self._num_counted :]
        self._num_counted += len(new)
        self._num_counted_bytes += len(new) * ENTRY_BYTES + sum(map(len, new))
        return self._num_counted_bytes

    def lose(self) -> None:
        """Note that this replica owns the log no more."""
        self.is_lost = self.is_closed = True
        self.forget()

    def forget(self) -> None:
        """Free the entries: the log has ended or is lost."""
        self.entries = []
        self.history = ()
        self._num_counted = self._num_counted_bytes = 0
