"""Cancels streams that nobody reads.

A stream that is not resumable is cancelled with its last reader. A resumable stream goes on for
`linger` seconds, and is cancelled if nobody reads it by then: here, or in another replica. In:
streams that lost their last reader or have one again. Not known here: why nobody reads.
"""

import asyncio

from penstock.stream.fleet import Fleet
from penstock.stream.stream import Stream

# How long a stream that cannot be resumed goes on for a reader in the replica that handed it over.
RELAY_LINGER_S = 5.0


class Lingering:
    """The streams that go on without readers. `fleet` knows the readers in other replicas."""

    def __init__(self, linger: float, fleet: Fleet | None) -> None:
        self._linger = linger
        self._fleet = fleet
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def unread(self, stream: Stream) -> None:
        """Cancel a stream without readers: now, or after it has lingered if it is resumable."""
        if stream.resumable or stream.keeper is not None:
            self.begin(stream)
        else:
            stream.cancel(client_gone=True)

    def begin(self, stream: Stream) -> None:
        """Cancel a stream after a while, unless it has a reader by then."""
        seconds = self._linger if stream.resumable else RELAY_LINGER_S
        loop = asyncio.get_running_loop()
        self._timers[stream.id] = loop.call_later(seconds, self._has_lingered, stream)

    def stop(self, stream: Stream) -> None:
        """Let a stream go on, or forget it; without effect if it does not linger."""
        if timer := self._timers.pop(stream.id, None):
            timer.cancel()

    def _has_lingered(self, stream: Stream) -> None:
        del self._timers[stream.id]
        if stream.keeper is None or self._fleet is None:
            stream.cancel(client_gone=True)
        else:
            self._fleet.unless_read(stream, self.begin)
