"""Streams that have ended: kept for later readers for a while, then remembered by their ending.

A kept stream can still be read. It is dropped after `retain` seconds, or earlier when its owner's
or all kept streams take too much memory: the oldest goes first. After that only its ending is
known, so that a late `cancel` or `find` gets the right answer.
"""

import asyncio
import collections
from dataclasses import dataclass

from penstock.events import finish_reason_of
from penstock.stream.quotas import Owner, Quotas
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
        self._endings: collections.OrderedDict[str, Ending] = collections.OrderedDict()
        self.num_bytes = 0
        """Estimated memory of all kept streams, in bytes."""

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

    def _keep(self, stream: Stream, ending: Ending) -> None:
        stream.release()
        num_bytes = stream.log.num_bytes()
        expiry = asyncio.get_running_loop().call_later(self._retain, self._drop, stream.id)
        self._kept[stream.id] = _Kept(stream, ending, num_bytes, expiry)
        self.num_bytes += num_bytes
        owner = ending.owner
        self._quotas.kept(owner, num_bytes)
        while self._quotas.keeps_too_much(owner):
            # By name: an owner's limits can change while its streams are kept.
            oldest = next(i for i, k in self._kept.items() if k.ending.owner.name == owner.name)
            self._drop(oldest)
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, stream_id: str) -> None:
        kept = self._kept.pop(stream_id)
        kept.expiry.cancel()
        self.num_bytes -= kept.num_bytes
        self._quotas.dropped(kept.ending.owner, kept.num_bytes)
