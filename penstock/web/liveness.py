"""The liveness: once a second, a look at every response that is being streamed.

One that has sent nothing for a while is woken to send a heartbeat, so that nothing on the way takes
it for dead. One whose client does not take what is sent is ended: without that, a client that never
reads would hold its stream, and its slot, for ever. One timer for all costs a token nothing.
"""

import asyncio
import logging
import time
from typing import Protocol

log = logging.getLogger(__name__)

TICK_S = 1.0


class Watched(Protocol):
    """What the liveness knows of a response (see `response.BodyWriter`)."""

    is_sending: bool
    """A send waits for the client."""
    since: float
    """When the last send began (while it waits) or was taken, on the monotonic clock."""

    @property
    def lag(self) -> int:
        """Events that its reader is behind."""

    def send_sign_of_life(self) -> None:
        """It has been silent for long."""

    def stop(self) -> None:
        """Its client is stalled: end it."""


# A send that waits for longer has a client that does not keep up.
BLOCKED_AFTER_S = 1.0


class Liveness:
    """`heartbeat`: seconds of silence after which one is sent. `stall_timeout`: seconds that one
    send may wait for its client."""

    def __init__(self, heartbeat: float, stall_timeout: float) -> None:
        self._heartbeat = heartbeat
        self._stall_timeout = stall_timeout
        self._writers: set[Watched] = set()
        self.num_stalled = 0
        """Responses that were ended because their clients did not read."""

    def __len__(self) -> int:
        return len(self._writers)

    def lags(self) -> list[int]:
        """For each response, how many events its reader is behind."""
        return [writer.lag for writer in self._writers]

    def num_blocked(self) -> int:
        """Responses whose clients have not taken what was sent for a second or longer."""
        latest = time.monotonic() - BLOCKED_AFTER_S
        return sum(writer.is_sending and writer.since < latest for writer in self._writers)

    def add(self, writer: Watched) -> None:
        """Look after this response."""
        self._writers.add(writer)

    def remove(self, writer: Watched) -> None:
        """It has ended."""
        self._writers.discard(writer)

    async def run(self) -> None:
        """Look after all of them, for ever."""
        tick = min(TICK_S, self._heartbeat / 2, self._stall_timeout / 2)
        while True:
            await asyncio.sleep(tick)
            self.beat(time.monotonic())

    def beat(self, now: float) -> None:
        """One look, at a time on the monotonic clock."""
        for writer in list(self._writers):
            waited = now - writer.since
            if writer.is_sending and waited > self._stall_timeout:
                self.num_stalled += 1
                log.info("ended a reader that took nothing for %.0f s", waited)
                writer.stop()
            elif not writer.is_sending and waited > self._heartbeat:
                writer.send_sign_of_life()
