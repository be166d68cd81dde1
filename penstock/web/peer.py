"""The client's end of one exchange, as the code that answers a request sees it.

Each HTTP server implements it: our own for plain HTTP/1.1 (see `http1.exchange`), and Granian for
TLS and HTTP/2 (see `granian`). Everything here is a plain call, so a waiting response needs no
task.
"""

from collections.abc import Callable
from typing import Protocol

PEER = "penstock.peer"
"""The key of a request's peer in its ASGI scope, if the HTTP server brings its own."""


class Peer(Protocol):
    """The client of one request."""

    descriptor: int
    """The socket for writes that go straight to the kernel; -1 while there must be none.

    A write there adds to the body, in chunks (RFC 9112, section 7.1). If the kernel does not take
    all of it, `write_rest` must be called with what is left.
    """

    holds_task: bool
    """True if the ASGI application must not return before the response has ended."""

    def write(self, data: bytes, is_last: bool) -> bool:
        """Write part of the body; `is_last` ends the response.

        Return True if the data was taken at once. Otherwise the client does not keep up, and
        nothing may be written until the function of `when_taken` is called.
        """

    def write_rest(self, data: bytes) -> bool:
        """Write bytes that the kernel did not take from the descriptor. Return as `write` does."""

    def when_taken(self, call: Callable[[], None]) -> None:
        """Call this whenever data was taken that `write` could not send at once."""

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Call this once as soon as the client has disconnected; None calls nothing."""

    def when_half_closed(self, call: Callable[[], None] | None) -> None:
        """Call this when the client sends nothing more, and writing would show if it is there."""

    def take_whole_body(self) -> bytes | None:
        """Return the request's body if all of it is here, otherwise None."""

    def abort(self) -> None:
        """Cut the response off: its client is stalled, or the rest of it cannot be made."""
