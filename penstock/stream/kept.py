"""Streams that have ended: kept for later readers for a while, then remembered by their ending.

A kept stream can still be read. It is dropped after `retain` seconds. It is dropped earlier if its
owner's kept streams take more than the owner may keep, or if all kept streams take too much: then
the owner whose streams take most loses its oldest one. So an owner that keeps no more than an equal
share loses nothing to others. After that only a stream's ending is known, so that a late `cancel`
or `find` gets the right answer.
"""

import asyncio
import collections
from collections.abc import Callable
from dataclasses import dataclass

from penstock.events import finish_reason_of
from penstock.stream.quotas import Owner, Quotas
from penstock.stream.record import StreamRecord
from penstock.stream.stream import Stream

MAX_ENDINGS = 10_000
"""How many endings are remembered; the oldest is forgotten first."""


@dataclass(frozen=True)
class Ending:
    """What stays known of a stream: its finish reason, its owner, whether it was resumable."""

    reason: str
    was_resumable: bool
    owner: Owner


@dataclass(frozen=True)
class _Kept:
    stream: Stream
    ending: Ending
    num_bytes: int
    expiry: asyncio.TimerHandle


class KeptStreams:
    """Keeps ended streams for `retain` seconds, in at most `max_bytes` of memory."""

    def __init__(self, quotas: Quotas, retain: float, max_bytes: int) -> None:
        self._quotas = quotas
        self._retain = retain
        self._max_bytes = max_bytes
        self._kept: dict[str, _Kept] = {}
        # The ids of each owner's kept streams, the oldest first, and their memory. By name: an
        # owner's limits can change while its streams are kept.
        self._ids_of: dict[str, dict[str, None]] = {}
        self._bytes_of: dict[str, int] = {}
        self._endings: collections.OrderedDict[str, Ending] = collections.OrderedDict()
        self.num_bytes = 0
        """Estimated memory of all kept streams, in bytes."""
        self.on_dropped: Callable[[StreamRecord], None] = lambda record: None
        """Is told of each resumable stream that can no longer be read."""

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, stream_id: str) -> Stream | None:
        """Return the kept stream with this id, if there is one."""
        kept = self._kept.get(stream_id)
        return None if kept is None else kept.stream

    def ending_of(self, stream_id: str) -> Ending | None:
        """Return how a stream ended, or None if it never existed or is forgotten.

        The ending of a kept stream is known however long ago it ended.
        """
        kept = self._kept.get(stream_id)
        return self._endings.get(stream_id) if kept is None else kept.ending

    def stream_ended(self, stream: Stream) -> None:
        """Remember the ending; keep the stream if it was accepted and is resumable."""
        assert stream.ended is not None
        record = stream.record
        ending = Ending(finish_reason_of(stream.ended), record.resumable, record.owner)
        self._endings[stream.id] = ending
        if len(self._endings) > MAX_ENDINGS:
            self._endings.popitem(last=False)
        if not record.resumable:
            return
        if stream.was_accepted.result() is None:
            self._keep(stream, ending)
        else:
            self._quotas.dropped(record.owner, 0)
            self.on_dropped(record)

    def _keep(self, stream: Stream, ending: Ending) -> None:
        num_bytes = stream.num_bytes()
        expiry = asyncio.get_running_loop().call_later(self._retain, self._drop, stream.id)
        self._kept[stream.id] = _Kept(stream, ending, num_bytes, expiry)
        self.num_bytes += num_bytes
        owner = ending.owner
        self._ids_of.setdefault(owner.name, {})[stream.id] = None
        self._bytes_of[owner.name] = self._bytes_of.get(owner.name, 0) + num_bytes
        self._quotas.kept(owner, num_bytes)
        while self._quotas.keeps_too_much(owner):
            self._drop(next(iter(self._ids_of[owner.name])))
        while self.num_bytes > self._max_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> int:
        """Drop the oldest stream of the owner whose kept streams take most memory.

        Returns the memory of the stream in bytes, or 0 if no stream is kept.
        """
        if not self._kept:
            return 0
        greatest = max(self._bytes_of, key=self._bytes_of.__getitem__)
        return self._drop(next(iter(self._ids_of[greatest])))

    def _drop(self, stream_id: str) -> int:
        kept = self._kept.pop(stream_id)
        kept.expiry.cancel()
        owner = kept.ending.owner
        self.num_bytes -= kept.num_bytes
        self._bytes_of[owner.name] -= kept.num_bytes
        del self._ids_of[owner.name][stream_id]
        if not self._ids_of[owner.name]:
            del self._ids_of[owner.name], self._bytes_of[owner.name]
        self._quotas.dropped(owner, kept.num_bytes)
        self.on_dropped(kept.stream.record)
        return kept.num_bytes
