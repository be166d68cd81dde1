"""What the straight path needs of one response (see `straight`), gathered in one object."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from penstock.events import Delta
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

    While the lane is open, it holds the reader's place in the log, in `cursor`. `frames` tells how
    the next plain delta is framed. `on_block` is called with the time at which a delta was logged
    if the client does not take its frame at once.
    """

    __slots__ = (
        "after",
        "append",
        "before",
        "cursor",
        "delivery",
        "frame",
        "on_block",
        "peer",
        "reader",
        "remember",
        "size",
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
        if isinstance(frames, tuple):
            before, after = frames
            self.before = before
            self.after = after + CRLF
            self.size = len(before) + len(after)
        else:
            self.before = b""
            self.frame = frames
        self.delivery = delivery
        self.on_block = on_block
        self.cursor = 0
        # The stream's own parts (see `Stream.open_lane`).
        self.transcript: Transcript
        self.timer: StreamTimer
        self.append: Callable[[Delta], None]
        self.remember: Callable[[Iterable[int]], None]
