"""A stream that this server shows, although another replica owns it.

In: the entries of the stream's log, as the store has them. Out: the same stream as at its owner, so
readers see the same bytes. Nothing is decided here: the owner decides, and stores what it decided.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from penstock.engine.protocol import LosableSink
from penstock.errors import Problem
from penstock.events import Failure, TerminalEvent
from penstock.observe.meter import Meter
from penstock.store.protocol import Entry, Following, LogStore, Wanted
from penstock.stream import entries
from penstock.stream.entries import Header
from penstock.stream.stored import Lost
from penstock.stream.stream import Stream

log = logging.getLogger(__name__)

_LOST = "The store of the streams' logs has lost a part of this answer. Send the request again."


class Followed:
    """One stream of another replica, its observer and its keeper (see `stream`).

    `on_idle` is called when nobody reads the stream any more, when it has ended unread, or when it
    is ahead of its log. `lost` is the stream if it was this server's own.
    """

    def __init__(self, on_idle: Callable[["Followed"], None], lost: Lost | None = None) -> None:
        self._on_idle = on_idle
        self._stream = None if lost is None else lost.stream
        self._following: Following | None = None
        self.is_begun = False
        """True once there is a stream that shows the log."""
        self._early: list[Entry] = []
        self._has_news = asyncio.Event()
        self._is_closed = False
        self._num_holds = 0
        self.num_entries = 0 if lost is None else lost.num_entries
        """How many entries of the log the stream has seen."""
        self._epoch = 0 if lost is None else lost.epoch
        self.is_ahead = False
        """True once the store turned out to have lost entries that the stream has seen."""
        self.end: tuple[TerminalEvent, Problem | None] | None = None
        """How the stream must end, if its owner decided that and has not stored the end yet."""
        self.model = ""
        if lost is not None:
            lost.stream.pass_on(self, self)

    def wanted(self, stream_id: str) -> Wanted:
        """Return what of the log this has to read."""
        return Wanted(stream_id, self.take, self.num_entries, self._epoch, self._note_ahead)

    def begin(self, following: Following) -> None:
        """Show a log that the store reads into `take`, from the stream's place on.

        Raises ValueError if this server cannot read the log.
        """
        header = Header.decode(following.header)
        self._following = following
        self.model = header.model
        if self._stream is None:
            self._stream = Stream(header.record, self, Meter())
            self._stream.keeper = self
            self._stream.phase = "queued"
        self.is_begun = True
        early, self._early = self._early, []
        self.take(early)

    @property
    def stream(self) -> Stream:
        """The stream; not before `begin`."""
        assert self._stream is not None
        return self._stream

    @property
    def epoch(self) -> int:
        """The log's epoch, as far as its entries were read."""
        assert self._following is not None
        return self._following.epoch

    @property
    def is_idle(self) -> bool:
        """Return True if nobody needs the stream."""
        return not self._num_holds and (self._stream is None or not self._stream.num_readers)

    def num_bytes(self) -> int:
        """Return how much memory the stream and the header of its log take, in bytes."""
        header = b"" if self._following is None else self._following.header
        return len(header) + self.stream.num_bytes()

    async def until_epoch(self, epoch: int) -> bool:
        """Wait until the claim with which this epoch began was read.

        Returns False if this does not read it: it was closed before.
        """
        await self._until(lambda: self.epoch >= epoch)
        return self.epoch >= epoch

    async def catch_up(self, store: LogStore) -> bool:
        """Wait until everything was read that the log has now, or until this is closed.

        Returns False if the log is gone. Raises StoreError.
        """
        num_entries = self.num_entries

        def count(batch: Sequence[Entry]) -> None:
            nonlocal num_entries
            num_entries += len(batch)

        wanted = Wanted(self.stream.id, count, num_entries, self.epoch)
        (newest,) = await store.follow([wanted])
        if newest is None:
            return False
        newest.close()
        await self._until(lambda: self.num_entries >= num_entries)
        return True

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not (is_so() or self._is_closed):
            self._has_news.clear()
            await self._has_news.wait()

    def hold(self) -> None:
        """Keep the stream until `release`, although nobody may read it."""
        self._num_holds += 1

    def release(self) -> None:
        """End what `hold` began."""
        self._num_holds -= 1
        if self.is_idle:
            self._on_idle(self)

    def cut(self) -> None:
        """Cut the stream's readers: they go on at another replica."""
        if self._stream is not None:
            self._stream.cut_readers()

    def close(self) -> None:
        """Follow the log no more."""
        self._is_closed = True
        self._has_news.set()
        if self._following is not None:
            self._following.close()

    def _note_ahead(self) -> None:
        """Show nothing more: what follows in the log does not continue what was shown.

        Readers are cut. They come back, and read what the log has. A client that waits for the
        whole answer has seen nothing. It gets an error.
        """
        self.is_ahead = True
        self.close()
        self.cut()
        if self._stream is not None:
            problem = Problem("replica_lost", _LOST, retry_safe=True)
            usage, timings = self._stream.usage, self._stream.timings_now()
            self._stream.end_with(Failure(problem.code, _LOST, True, usage, timings), problem)
            self._on_idle(self)

    def take(self, batch: Sequence[Entry]) -> None:
        """Take entries of the log, as the store reads them."""
        if not self.is_begun:  # the stream may not be made yet
            self._early += batch
            return
        for entry in batch:
            self.num_entries += 1
            try:
                entries.apply(self.stream, entry)
            except Exception:  # a bug with one entry must not stop the others
                log.exception("an entry of a stream's log could not be applied")
        self._has_news.set()

    # The keeper: only the owner stores anything.

    def decide(self, stream: Stream, decision: entries.Decision) -> None:
        """Do nothing: the owner decides."""

    def note(self, stream: Stream, entry: entries.Submitted) -> None:
        """Do nothing: the owner notes."""

    def sink(self, stream: Stream, target: LosableSink | None = None) -> LosableSink:
        """Return the sink itself: no engine here works on the stream."""
        return target or stream

    def conclude(self, stream: Stream, end: TerminalEvent, problem: Problem | None) -> None:
        """Remember how the stream ends; its owner stores its terminal event."""
        self.end = (end, problem)

    # The observer.

    def stream_accepted(self, stream: Stream) -> None:
        """Do nothing: the owner has checked the prompt."""

    def stream_ended(self, stream: Stream, *, engine_done: bool) -> None:
        """Close the log: nothing follows."""
        self.close()
        if not stream.num_readers:
            self._on_idle(self)

    def stream_lost(self, stream: Stream) -> None:
        """Do nothing: no engine here works on the stream."""

    def stream_read(self, stream: Stream) -> None:
        """Do nothing."""

    def stream_unread(self, stream: Stream) -> None:
        """Note that the last reader has left."""
        self._on_idle(self)


class Nobody(Followed):
    """The observer and keeper of a stream that this server knows nothing about any more."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(lambda followed: None, Lost(stream, 0, 0))
