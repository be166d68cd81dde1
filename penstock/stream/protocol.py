"""The three roles around a stream: its readers, its observer and its keeper.

A stream calls them through these protocols, and knows nothing else about them.
"""

from typing import TYPE_CHECKING, Protocol

from penstock.engine.protocol import LosableSink
from penstock.errors import Problem
from penstock.events import TerminalEvent

if TYPE_CHECKING:
    from penstock.stream import entries
    from penstock.stream.stream import Stream


class StreamReader(Protocol):
    """The part of a reader that a stream uses (see `reader`)."""

    @property
    def lag(self) -> int:
        """Return how many events the reader is behind."""

    def wake(self, logged_at: float = 0.0) -> None:
        """Note that the log has grown, at `logged_at` on the monotonic clock."""

    def cut(self) -> None:
        """End the connection without an end of the stream."""


class StreamObserver(Protocol):
    """Decides what a stream does not decide itself (see `registry` and `following`)."""

    def stream_accepted(self, stream: "Stream") -> None:
        """Note that the engine has counted the prompt's tokens; may end the stream."""

    def stream_ended(self, stream: "Stream", *, engine_done: bool) -> None:
        """Note that the stream just got its terminal event.

        `engine_done` is True if the engine itself ended the request; otherwise the engine must
        still be told to stop.
        """

    def stream_lost(self, stream: "Stream") -> None:
        """Note that the engine's process died with the stream's request in it."""

    def stream_read(self, stream: "Stream") -> None:
        """Note that a stream without readers has a reader."""

    def stream_unread(self, stream: "Stream") -> None:
        """Note that the stream's last reader has left."""


class Keeper(Protocol):
    """Stores what happens to a stream before it happens (see `entries`)."""

    def decide(self, stream: "Stream", decision: "entries.Decision") -> None:
        """Store a decision of the server, and apply it to the stream then."""

    def note(self, stream: "Stream", entry: "entries.Submitted") -> None:
        """Store what was applied to the stream already, and shows nothing to its readers."""

    def sink(self, stream: "Stream", target: LosableSink | None = None) -> LosableSink:
        """Return what an engine must push into, so that `target` gets what is stored.

        By default the target is the stream.
        """

    def conclude(self, stream: "Stream", end: TerminalEvent, problem: Problem | None) -> None:
        """Store the terminal event, and end the stream with it then."""
