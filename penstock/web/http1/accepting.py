"""Accepts connections from a listening socket that several processes share.

In: the socket, and `Turns`, which says whose turn it is. Out: connections for this process. Without
turns, the process that wakes first takes all that wait, and requests wait for its slots while
another process has free ones.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

# After an error such as too many open files, which does not pass at once.
ERROR_PAUSE_S = 1.0


class Turns(Protocol):
    """Says whether this process or another should accept the next connection."""

    def delay(self) -> float | None:
        """Return None if it is this process's turn, else after how many seconds to ask again."""

    def taken(self) -> None:
        """Count a connection that this process has accepted."""

    def closed(self) -> None:
        """Count a connection of this process that has ended."""


class Acceptor:
    """Accepts connections from `listener`, one at each turn of the event loop, until `close`."""

    def __init__(
        self, listener: socket.socket, make: Callable[[], asyncio.Protocol], turns: Turns
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make = make
        self._turns = turns
        self._connecting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._on_connection)

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _on_connection(self) -> None:
        delay = self._turns.delay()
        if delay is not None:
            if delay:
                self._wait(delay)
            return  # otherwise the event loop calls again, unless another process was faster
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("connections cannot be accepted: %s", error.strerror)
            self._wait(ERROR_PAUSE_S)
            return
        accepted.setblocking(False)
        self._turns.taken()
        connecting = asyncio.create_task(self._connect(accepted))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, accepted)
        except OSError:  # the client has left
            self._turns.closed()
            with contextlib.suppress(OSError):
                accepted.close()
