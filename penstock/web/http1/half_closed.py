"""Finds out whether a client that sends nothing more is still there.

A client that has closed its connection and one that has only finished sending (a half-close) look
the same: the end of its data (FIN). The second must get its answer (RFC 9112, section 9.6), the
first must not keep its slot. The difference shows once we send something: the system of a client
that has closed refuses it (RST). So we send something that is right in any case, and look at the
state of the connection soon, then ever more seldom.
"""

import asyncio
import functools
import socket
import sys
from typing import Protocol

FIRST_LOOK_S = 0.005
LAST_LOOK_S = 1.0
# A response that has not begun is given this time: many are made before anything must be sent.
PATIENCE_S = 0.02

# The first byte of the kernel's description of a connection is its state.
_INFO = getattr(socket, "TCP_INFO", None) or (0x106 if sys.platform == "darwin" else None)
CLOSED = 7 if sys.platform == "linux" else 0
_CLOSE_WAIT = 8 if sys.platform == "linux" else 5


class Answered(Protocol):
    """The exchange that is under way."""

    @property
    def has_begun(self) -> bool:
        """True if a part of the response was written."""


class MaybeGone(Protocol):
    """A connection whose client sends nothing more."""

    @property
    def exchange(self) -> Answered | None:
        """The exchange that is being answered."""

    def probe(self) -> None:
        """Send something, to see whether the client takes it."""

    @property
    def state(self) -> int:
        """The state of the connection (see `state_of`)."""

    def abort(self) -> None:
        """Cut the connection."""


def state_of(transport: asyncio.BaseTransport | None) -> int:
    """Return the connection's TCP state, CLOSED if the peer's system has refused data.

    Where the system does not tell, a client that has left is noticed by the second write to it.
    """
    if transport is None:
        return CLOSED
    sock = transport.get_extra_info("socket")
    if _INFO is None or sock is None:
        return _CLOSE_WAIT
    try:
        return int(sock.getsockopt(socket.IPPROTO_TCP, _INFO, 1)[0])
    except OSError:
        return CLOSED


def watch(connection: MaybeGone) -> None:
    """Cut the connection as soon as it turns out that its client is gone.

    The client may have finished sending, or we do not read what it sends and cannot see whether
    it has. On this machine the answer to what we send is there at once.
    """
    if connection.exchange is not None:
        _look(connection, connection.exchange, 0.0, has_probed=False)


def _look(connection: MaybeGone, exchange: Answered, waited: float, *, has_probed: bool) -> None:
    if connection.exchange is not exchange:
        return  # it was answered
    may_probe = exchange.has_begun or waited >= PATIENCE_S
    if not has_probed and may_probe and connection.state == _CLOSE_WAIT:
        connection.probe()
        waited, has_probed = 0.0, True
    if connection.state == CLOSED:
        connection.abort()
        return
    wait = min(max(2 * waited, FIRST_LOOK_S), LAST_LOOK_S)
    look = functools.partial(_look, connection, exchange, wait, has_probed=has_probed)
    asyncio.get_running_loop().call_later(wait, look)
