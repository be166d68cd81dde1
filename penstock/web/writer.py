"""The write end of a response, as the code that sends a stream's body sees it.

The HTTP server implements it (see `granian`).
"""

from collections.abc import Awaitable
from typing import Protocol


class Writer(Protocol):
    """Writes the body of one response."""

    def write(self, data: bytes, is_last: bool) -> Awaitable[None] | None:
        """Write part of the body; `is_last` ends the response.

        Returns None if the data was taken at once. Otherwise the client does not keep up: the
        result is an awaitable that completes when the data was taken. Only one write may wait.
        """
