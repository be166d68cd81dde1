"""The client's end of one exchange, as the code that answers a request sees it.

Each HTTP server implements it: our own for plain HTTP/1.1 (see `http1.exchange`), and Granian for
TLS and HTTP/2 (see `granian`). Everything here is a plain call, so a waiting response needs no
task.
"""

from typing import Protocol

PEER = "penstock.peer"
"""The key of a request's peer in its ASGI scope, if the HTTP server brings its own."""


class Listener(Protocol):
    """Learns what a client does while it is answered."""

    def client_took(self) -> None:
        """The client has taken all that could not be sent at once."""

    def client_gone(self) -> None:
        """The client has disconnected. This comes once."""

    def client_may_be_gone(self) -> None:
        """The client sends nothing more. A write would show whether it is still there."""


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
        nothing may be written until the listener's `client_took` is called.
        """

    def write_rest(self, data: bytes) -> bool:
        """Write bytes that the kernel did not take from the descriptor. Return as `write` does."""

    def tell(self, listener: "Listener | None") -> None:
        """Tell `listener` from now on what the client does; None is told nothing.

        It is told at once if the client has disconnected before.
        """

    def take_whole_body(self) -> bytes | None:
        """Return the request's body if all of it is here, otherwise None."""

    def abort(self) -> None:
        """Cut the response off: its client is stalled, or the rest of it cannot be made."""
