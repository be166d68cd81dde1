"""Finds out whether a client that sends nothing more is still there.

A client that has closed its connection and one that has only finished sending (a half-close) look
the same: the end of its data (FIN). The second must get its answer (RFC 9112, section 9.6), the
first must not keep its slot. The difference shows once we send something: the system of a client
that has closed refuses it (RST). So we send something that is right in any case, and look at the
state of the connection soon, then ever more seldom.
"""

import asyncio
import socket
import sys
from typing import Protocol

FIRST_LOOK_S = 0.005
LAST_LOOK_S = 1.0
# A response that has not begun is given this time: many are made before anything must be sent.
PATIENCE_S = 0.02

# The first byte of the kernel's description of a connection is its state.
_INFO = getattr(socket, "TCP_INFO", None) or (0x106 if sys.platform == "darwin" else None)
_CLOSED = 7 if sys.platform == "linux" else 0


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
    def is_open(self) -> bool:
        """True unless the client's system has refused our data."""

    def abort(self) -> None:
        """Cut the connection."""


def is_closed(transport: asyncio.BaseTransport) -> bool:
    """Return True if the peer's system has refused data, or the connection has ended."""
    sock = transport.get_extra_info("socket")
    if _INFO is None or sock is None:
        return True  # this system cannot tell: the client counts as gone
    try:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, _INFO, 1)[0] == _CLOSED)
    except OSError:
        return True


def watch(connection: MaybeGone, *, may_probe: bool = True) -> None:
    """Cut the connection as soon as it turns out that its client is gone."""
    loop = asyncio.get_running_loop()
    exchange = connection.exchange
    if exchange is None:
        return
    wait = 0.0 if exchange.has_begun else PATIENCE_S
    if may_probe:
        loop.call_later(wait, _probe, connection, exchange)
    loop.call_later(FIRST_LOOK_S, _look, connection, exchange, FIRST_LOOK_S)


def _probe(connection: MaybeGone, exchange: object) -> None:
    if connection.exchange is exchange:
        connection.probe()


def _look(connection: MaybeGone, exchange: object, waited: float) -> None:
    if connection.exchange is not exchange or exchange is None:
        return  # it was answered
    if not connection.is_open:
        connection.abort()
        return
    wait = min(2 * waited, LAST_LOOK_S)
    asyncio.get_running_loop().call_later(wait, _look, connection, exchange, wait)
