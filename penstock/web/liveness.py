"""Keeps streamed responses alive: one timer looks at all of them once a second.

A response that has sent nothing for a while is woken to send a heartbeat, so that nothing on the
way takes the connection for dead. A response whose client does not take what is sent is ended:
otherwise a client that never reads would hold its stream and its slot for ever. A single timer
for all responses costs nothing per token.
"""

import asyncio
import logging
import time
from typing import Protocol

log = logging.getLogger(__name__)

TICK_S = 1.0
# A write that waits longer belongs to a client that does not keep up.
BLOCKED_AFTER_S = 1.0


class Watched(Protocol):
    """The part of a response that is watched (see `delivery.BodyWriter`)."""

    is_sending: bool
    """True while a write waits for the client."""

    @property
    def stream_id(self) -> str:
        """Return the id of the stream that the response shows."""

    @property
    def since(self) -> float:
        """When the last write began (while it waits) or was taken, on the monotonic clock."""

    @property
    def lag(self) -> int:
        """Return how many events the response's reader is behind."""

    def send_sign_of_life(self) -> None:
        """Send something: the response has been silent for long."""

    def stop(self) -> None:
        """End the response: its client is stalled."""


class Liveness:
    """Watches responses.

    A heartbeat is due after `heartbeat` seconds of silence. A write may wait `stall_timeout`
    seconds for its client.
    """

    def __init__(self, heartbeat: float, stall_timeout: float) -> None:
        self._heartbeat = heartbeat
        self._stall_timeout = stall_timeout
        self._writers: set[Watched] = set()
        self.num_stalled = 0
        """Responses that were ended because their clients did not read."""

    def __len__(self) -> int:
        return len(self._writers)

    def lags(self) -> list[int]:
        """Return how many events the reader of each response is behind."""
        return [writer.lag for writer in self._writers]

    def num_blocked(self) -> int:
        """Count the responses whose clients have taken nothing for a second or longer."""
        latest = time.monotonic() - BLOCKED_AFTER_S
        return sum(writer.is_sending and writer.since < latest for writer in self._writers)

    def add(self, writer: Watched) -> None:
        """Watch this response."""
        self._writers.add(writer)

    def remove(self, writer: Watched) -> None:
        """Stop watching this response."""
        self._writers.discard(writer)

    def stop_readers_of(self, stream_id: str) -> int:
        """End the responses that show this stream. Return how many there were."""
        writers = [writer for writer in self._writers if writer.stream_id == stream_id]
        for writer in writers:
            writer.stop()
        return len(writers)

    async def run(self) -> None:
        """Check all responses, for ever."""
        tick = min(TICK_S, self._heartbeat / 2, self._stall_timeout / 2)
        while True:
            await asyncio.sleep(tick)
            self.check(time.monotonic())

    def check(self, now: float) -> None:
        """Check all responses once; `now` is on the monotonic clock."""
        for writer in list(self._writers):
            waited = now - writer.since
            if writer.is_sending and waited > self._stall_timeout:
                self.num_stalled += 1
                log.info("ended a reader that took nothing for %.0f s", waited)
                writer.stop()
            elif not writer.is_sending and waited > self._heartbeat:
                writer.send_sign_of_life()
