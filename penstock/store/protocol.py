"""The protocol between a server's streams and the store of their logs: all you need to add a store.

A store keeps the *log* of each resumable stream outside of the process that runs it, so that
another process can show the stream, or continue it. A stored log is a list of *entries*: first its
header, then one entry for each call of the stream's sink and for each decision of the server (see
`stream.entries`). The store does not know what entries mean; to it they are bytes.

Words: a *replica* is one running server process that uses the store. Each log has one *owner*, the
replica that may append to it, and an *epoch*: 1 when it is opened, one more with each new owner. A
replica owns logs only while its *lease* holds. A replica that ends, dies, or cannot reach the store
for longer than its lease loses all of its logs; they are *orphans* until another replica claims
them. An entry of an older epoch is refused, so whatever an old owner still does, nobody sees it.

A store has *lives*. Within a life it loses nothing that it has confirmed. Between two of them (the
power failed, or a replica took its place) it may have lost the last entries of each log. An owner
that is alive writes them again. If it is not, the claim says so: see `TORN`.

`tests/store/test_conformance.py` tests every store against this protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

Entry = bytes
"""One entry of a log, at most a few kilobytes; the header may be as large as a request."""

CLAIMED: Entry = b""
"""The entry that a claim appends if the log has everything that was ever confirmed."""

TORN: Entry = b"\xc0"
"""The entry that a claim appends if the log may lack its last entries, because its owner last had
everything in the store in an earlier life of the store. Readers may have seen what is missing. No
other entry equals `CLAIMED` or `TORN`."""

ENTRY_BYTES = 48
"""The memory of an entry in a list, without its bytes."""

MAX_GROUP = 64
"""The most logs in one call of `follow` or `claim`: other replicas get their turn in between."""


class Wanted(NamedTuple):
    """A log to follow. Its first `after` entries are left out; the last of them is of `epoch`.

    `on_ahead` is called, and nothing follows, if more of the log was read than the log has now: the
    store has lost entries that were left out or passed on, and a new owner goes on without them.
    """

    stream_id: str
    on_entries: Callable[[Sequence[Entry]], None]
    after: int = 0
    epoch: int = 0
    on_ahead: Callable[[], None] = lambda: None


class StoredLog:
    """A log as its owner appends to it. Only stores make these, usually of a class of their own."""

    __slots__ = ("epoch", "stream_id")

    def __init__(self, stream_id: str, epoch: int) -> None:
        self.stream_id = stream_id
        self.epoch = epoch


class StoreWatcher(Protocol):
    """What a store reports to the streams of its replica. No method blocks or raises."""

    def log_lost(self, log: StoredLog) -> None:
        """This replica owns `log` no more: another one has claimed it.

        What was appended and is not acknowledged may be in the log, or not. No `then` of an
        `append` with entries of this log is called before this.
        """

    def logs_orphaned(self, orphans: Sequence[tuple[str, int]]) -> None:
        """These logs, with their epochs, have no owner. Called again while that is so.

        Called soon after a lease has ended, and at the start for all logs that are orphans then.
        """

    def store_changed(self) -> None:
        """`LogStore.problem` has changed."""

    def logs_unreachable(self) -> None:
        """The store has not answered for longer than its patience, so no lease can hold.

        All of this replica's logs are lost: no `then` is called any more for what was appended
        before. When the store answers again, they are orphans, unless others have claimed them.
        """


class Following(Protocol):
    """A log that this replica reads while others may append to it."""

    @property
    def header(self) -> Entry:
        """The header of the log."""

    @property
    def epoch(self) -> int:
        """The log's epoch, as far as its entries were read."""

    def close(self) -> None:
        """Read no more of it. May be called twice."""


class LogStore(Protocol):
    """The store of logs, as one replica sees it.

    Its constructor takes what the setting `log` names, and `patience`, in seconds: how long it
    tries to reach the store before it reports `logs_unreachable`.
    """

    @property
    def replica(self) -> str:
        """This replica's unguessable name, new at each start."""

    @property
    def problem(self) -> str:
        """Why the store does not answer now, as a sentence, or "". Secrets are left out of it."""

    def num_bytes(self) -> int:
        """Return how much memory the entries take that this process keeps to write them, perhaps
        again, in bytes."""

    async def start(self, watcher: StoreWatcher) -> None:
        """Open the store and begin the lease. Raises StartError.

        The error names what is wrong (not reachable, held by another server, full, no permission,
        an unknown format) and the next step.
        """

    async def release(self) -> None:
        """Give the lease back: from now on this replica's logs are orphans. It may still follow."""

    async def stop(self) -> None:
        """Release, and close everything. Called once."""

    # Owning.

    def open(self, stream_id: str, header: Entry) -> StoredLog:
        """Begin a log in epoch 1 with this replica as its owner. Queued like an `append`."""

    def append(
        self,
        entries: Sequence[tuple[StoredLog, Entry]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Append entries, all in one write, and return at once.

        `then` is called when all of them are stored, and everything appended before too: `then`s
        are called in the order of the calls, perhaps within `append`. `entries` may be empty: that
        waits for everything appended before. Entries of a lost log are left out.
        """

    def end(
        self, log: StoredLog, entry: Entry, retain: float, then: Callable[[], None] = lambda: None
    ) -> None:
        """Append the last entry, like `append`. The log stays readable for `retain` seconds."""

    def drop(self, stream_id: str) -> None:
        """Remove an ended log before its time."""

    async def confirm_owner(self, log: StoredLog) -> None:
        """Ask the store whether this replica still owns `log`: if not, `log_lost` comes before this
        returns. Everything appended before is stored then, too. Raises StoreError.
        """

    # Reading.

    async def follow(self, wanted: Sequence[Wanted]) -> Sequence[Following | None]:
        """Read logs from their beginnings, and what is appended later. None for unknown ones.

        `on_entries` gets the entries without the header, in order, each once: those that are there
        already before this returns, later ones within 50 ms. While a log is followed,
        `is_followed` is True at all replicas. At most `MAX_GROUP` logs. Raises StoreError.
        """

    async def headers(self, stream_ids: Sequence[str]) -> Sequence[Entry | None]:
        """Return the headers of logs, None for unknown ones. Raises StoreError.

        At most `MAX_GROUP` logs.
        """

    async def is_followed(self, stream_id: str) -> bool:
        """Return True if another replica follows the log now. Raises StoreError."""

    # Taking over.

    async def claim(self, logs: Sequence[tuple[str, int]]) -> Sequence[StoredLog | None]:
        """Become the owner of logs that have these epochs. The next ones begin with `CLAIMED` or
        `TORN`.

        Exactly one of all claimants of an epoch gets the log; the others get None, also if the log
        has ended or is gone. Its old owner need not be dead: it is fenced. Read a log only after
        the claim: then nothing of an older epoch can follow. At most `MAX_GROUP` logs,
        each once.

        Raises StoreError. Then this replica owns none of them: those that no other one owns are
        reported as orphans again, however far the claim had come.
        """

    # Small values that replicas share.

    async def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        """Store a value for `ttl` seconds unless the name has one; return the one it has.

        Returns None if the value was stored. Raises StoreError.
        """

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        """Store a value for `ttl` seconds, in place of the old one. Raises StoreError."""

    async def get(self, name: str) -> bytes | None:
        """Return a value, or None. Raises StoreError."""

    async def delete(self, name: str) -> None:
        """Remove a value. Raises StoreError."""

    async def exchange(self, mine: bytes) -> Mapping[str, bytes]:
        """Publish a value of this replica's for as long as its lease holds; return those of the
        other replicas that have a lease, by replica. Raises StoreError."""


class StoreError(Exception):
    """The store did not answer, or refused. Its text is a sentence without secrets."""
