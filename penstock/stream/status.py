"""What happens to a stream besides its events, for clients that ask for it.

In: the moments at which a stream changes hands or waits. Out: statuses for those who watch it. A
status has no id and never enters the log: it says something about now. A stream that nobody watches
makes none.
"""

from typing import Literal, Protocol

import msgspec

State = Literal[
    "queued", "prefill", "generating", "stalled", "restarting", "moved", "waiting", "continuing"
]


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a stream does now. Fields that do not belong to its state are None."""

    state: State
    """"queued": it waits for its turn. "prefill": the engine reads the prompt. "generating": tokens
    come. "stalled": the engine gives no sign of life. "restarting": the engine died, and the stream
    goes on when it is back. "moved": another server has taken the stream over. "waiting": no
    upstream is there to answer, and the stream waits for one. "continuing": an upstream failed, and
    another one goes on with the answer."""
    position: int | None = None
    """Queued: the place in the queue; 1 is next."""
    eta: float | None = None
    """Queued: the estimated seconds until the stream starts, if there is an estimate."""
    prompt_tokens: int | None = None
    """Prefill: the tokens to read. After a restart, the answer so far is part of them."""
    read_tokens: int | None = None
    """Prefill: how many of them the engine has read, if it tells."""
    tokens: int | None = None
    """All but queued, prefill and stalled: the number of tokens that the answer has, and keeps."""
    seconds: float | None = None
    """Stalled: for how long, in seconds."""
    limit: float | None = None
    """Stalled: after so many seconds the engine is restarted."""


class Watcher(Protocol):
    """Someone who asked what happens to a stream."""

    def tell(self, status: Status, index: int) -> None:
        """Note what the stream does now. Its log has `index` events."""
