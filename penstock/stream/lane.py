"""A lane gathers everything that the straight path needs of one response (see `straight`)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from penstock.events import Event
    from penstock.observe.meter import Delivery
    from penstock.stream.reader import Reader
    from penstock.stream.timing import StreamTimer
    from penstock.stream.transcript import Transcript


CRLF = b"\r\n"
Frames = tuple[bytes, bytes] | Callable[[str], bytes]
"""How plain deltas are framed: the bytes around the text as JSON, or a function of the text."""


class DirectPeer(Protocol):
    """The client of a response whose socket may be written to (see `web.peer.Peer`)."""

    descriptor: int

    def write_rest(self, data: bytes) -> bool:
        """Write what the kernel did not take."""


class Lane:
    """A stream whose only reader has seen everything, and that reader's client.

    While the lane is open, it has the figures that change with each token: the reader's place in
    the log, the number of tokens, and two times. With a thousand streams, each object that a token
    touches is a cache miss, so they are here and not where they belong; `close` puts them back.
    `frames` tells how the next plain delta is framed. `on_block` is called with the time at which a
    delta was logged if the client does not take its frame at once.
    """

    __slots__ = (
        "after",
        "before",
        "cursor",
        "delivery",
        "events",
        "frame",
        "generated",
        "logged_at",
        "num_tokens",
        "on_block",
        "peer",
        "reader",
        "size",
        "taken_at",
        "timer",
        "transcript",
    )

    def __init__(
        self,
        reader: "Reader",
        peer: DirectPeer,
        frames: Frames,
        delivery: "Delivery",
        on_block: Callable[[float], None],
    ) -> None:
        self.reader = reader
        self.peer = peer
        self.delivery = delivery
        self.on_block = on_block
        if isinstance(frames, tuple):
            before, after = frames
            self.before = before
            self.after = after + CRLF
            self.size = len(before) + len(after)
        else:
            self.before = b""
            self.frame = frames
        self.cursor = 0
        self.taken_at = 0.0
        """When the last frame was taken, on the monotonic clock."""

    def open(
        self, cursor: int, transcript: "Transcript", timer: "StreamTimer", events: list["Event"]
    ) -> None:
        """Take over the figures from where they belong."""
        self.cursor = cursor
        self.transcript = transcript
        self.timer = timer
        self.events = events
        self.generated = transcript.generated
        self.num_tokens = transcript.completion_tokens
        self.logged_at = timer.last_delta_at
        self.taken_at = self.delivery.last

    def count(self) -> None:
        """Tell the transcript the number of tokens."""
        self.transcript.completion_tokens = self.num_tokens

    def close(self) -> None:
        """Put the figures back."""
        self.count()
        self.timer.last_delta_at = self.logged_at
        self.delivery.last = self.taken_at
