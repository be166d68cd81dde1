"""The server's end of the socket to an engine's process.

In: messages for the engine, and the bytes that come from it. Out: batches of messages. Not known
here: what the messages mean.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from itertools import chain
from typing import cast

from penstock.engine.process import messages

log = logging.getLogger(__name__)

# The last messages of a dead process are in the socket, which a child of it may hold open.
LAST_MESSAGES_TIMEOUT_S = 1.0
# The engine's process reads at once. If so much is unread, it stands still, and gets no more.
MAX_UNREAD_BYTES = 4 * 1024 * 1024


class Channel(asyncio.Protocol):
    """Calls `receive` with each batch, and `on_room` when the engine's process reads again."""

    def __init__(
        self, receive: Callable[[list[messages.FromEngine]], None], on_room: Callable[[], None]
    ) -> None:
        self._receive = receive
        self._on_room = on_room
        self._deframer = messages.Deframer()
        self._decoder = messages.from_engine_decoder()
        self._transport: asyncio.Transport | None = None
        self.is_congested = False
        """True while more than `MAX_UNREAD_BYTES` wait to be read by the engine's process."""
        self.lost = asyncio.Event()
        """Set once nothing can be sent or received any more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base class
        self._transport.set_write_buffer_limits(high=MAX_UNREAD_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost.set()

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        self._on_room()

    def data_received(self, data: bytes) -> None:
        try:
            bodies = self._deframer.feed(data)
            if len(bodies) == 1:
                self._receive(self._decoder.decode(bodies[0]))
            elif bodies:  # a busy server takes several steps at once: one write to a store
                self._receive(list(chain.from_iterable(map(self._decoder.decode, bodies))))
        except Exception:  # nothing that such a process says can be understood any more
            log.exception("the engine's process sent a message that is none")
            if self._transport is not None:
                self._transport.abort()

    def send(self, message: messages.ToEngine) -> None:
        """Send a message, or drop it if the process is gone."""
        if self._transport is not None:
            self._transport.write(messages.frame([message]))

    async def read_to_end(self) -> None:
        """Receive the messages that a process sent before it ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.lost.wait(), LAST_MESSAGES_TIMEOUT_S)

    def close(self) -> None:
        """Close the socket without waiting until what was sent is read."""
        if self._transport is not None:
            self._transport.abort()
