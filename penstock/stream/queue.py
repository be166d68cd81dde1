"""Tells the streams in the queue their places, while there are any.

A stream learns its place soon after it enters the queue, and again whenever the place changes,
but not more often than is useful for its expected wait. Who comes next is decided in `admission`.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol

from penstock.stream.admission import Place

# A new stream in the queue learns its place after this time; all places are checked once a period.
FIRST_NOTICE_S = 0.1
NOTICE_PERIOD_S = 1.0
# A stream with a long wait learns of a change after this share of its remaining wait.
NOTICE_SHARE_OF_WAIT = 1 / 8


class QueuedStream(Protocol):
    """The part of a stream that can be told its place."""

    place: Place | None

    def tell_place(self, place: Place) -> None:
        """Pass the place on to the stream's readers."""


class QueueNotices:
    """Tells streams their places. `places` gives every place by stream id; `stream_of` finds one
    stream by its id."""

    def __init__(
        self,
        places: Callable[[], dict[str, Place]],
        stream_of: Callable[[str], QueuedStream],
    ) -> None:
        self._places = places
        self._stream_of = stream_of
        self._timer: asyncio.TimerHandle | None = None
        self._told_at: dict[str, float] = {}

    def stream_queued(self) -> None:
        """Note that a stream entered the queue: tell it its place soon."""
        loop = asyncio.get_running_loop()
        soon = loop.time() + FIRST_NOTICE_S
        if self._timer is None or self._timer.when() > soon:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(soon, self._tell)

    def _tell(self) -> None:
        # Armed first: a bug with one stream must not end the notices of all others.
        self._timer = asyncio.get_running_loop().call_later(NOTICE_PERIOD_S, self._tell)
        now = time.monotonic()
        places = self._places()
        told_at, self._told_at = self._told_at, {}
        for stream_id, place in places.items():
            stream = self._stream_of(stream_id)
            told = told_at.get(stream_id, -math.inf)
            if is_worth_telling(place, stream.place, now - told):
                stream.tell_place(place)
                told = now
            self._told_at[stream_id] = told
        if not places:
            self._timer.cancel()
            self._timer = None


def is_worth_telling(place: Place, before: Place | None, seconds_since: float) -> bool:
    """Return True if a stream should learn `place`.

    `before` is the place it was told last, `seconds_since` how long ago that was.
    """
    if before is None:
        return True
    wait = max(NOTICE_PERIOD_S / 2, (place.eta or 0.0) * NOTICE_SHARE_OF_WAIT)
    return place.position != before.position and seconds_since >= wait
