"""The pulse: once a second, a look at every response that is being streamed.

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
    """What the pulse needs of a reader."""

    @property
    def lag(self) -> int: ...
    def wake(self) -> None: ...


# A send that waits for longer has a client that does not keep up.
BLOCKED_AFTER_S = 1.0


class Sending:
    """What the pulse knows of one response; made in the task that sends it."""

    __slots__ = ("_task", "is_sending", "is_stalled", "reader", "since")

    def __init__(self, reader: Watched) -> None:
        self._task = asyncio.current_task()
        self.reader = reader
        self.is_sending = False
        self.is_stalled = False
        """It was ended because its client did not read."""
        self.since = time.monotonic()
        """When the last send began (while it lasts) or ended, on the monotonic clock."""

    def begin(self) -> None:
        """A send begins."""
        self.since = time.monotonic()
        self.is_sending = True

    def end(self) -> None:
        """The server has taken what was sent."""
        self.since = time.monotonic()
        self.is_sending = False

    def stop(self) -> None:
        """End the response: its client is stalled."""
        self.is_stalled = True
        if self._task is not None:
            self._task.cancel()


class Pulse:
    """`heartbeat`: seconds of silence after which one is sent. `stall_timeout`: seconds that one
    send may wait for its client."""

    def __init__(self, heartbeat: float, stall_timeout: float) -> None:
        self._heartbeat = heartbeat
        self._stall_timeout = stall_timeout
        self._sendings: set[Sending] = set()
        self.num_stalled = 0
        """Responses that were ended because their clients did not read."""

    def __len__(self) -> int:
        return len(self._sendings)

    def lags(self) -> list[int]:
        """For each response, how many events its reader is behind."""
        return [sending.reader.lag for sending in self._sendings]

    def num_blocked(self) -> int:
        """Responses whose clients have not taken what was sent for a second or longer."""
        latest = time.monotonic() - BLOCKED_AFTER_S
        return sum(sending.is_sending and sending.since < latest for sending in self._sendings)

    def add(self, sending: Sending) -> None:
        """Look after this response."""
        self._sendings.add(sending)

    def remove(self, sending: Sending) -> None:
        """It has ended."""
        self._sendings.discard(sending)

    async def run(self) -> None:
        """Look after all of them, for ever."""
        tick = min(TICK_S, self._heartbeat / 2, self._stall_timeout / 2)
        while True:
            await asyncio.sleep(tick)
            self.beat(time.monotonic())

    def beat(self, now: float) -> None:
        """One look, at a time on the monotonic clock."""
        for sending in list(self._sendings):
            waited = now - sending.since
            if sending.is_sending and waited > self._stall_timeout:
                self.num_stalled += 1
                log.info("ended a reader that took nothing for %.0f s", waited)
                sending.stop()
            elif not sending.is_sending and waited > self._heartbeat:
                sending.reader.wake()
