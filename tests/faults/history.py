"""What clients, and the engine where it tells, saw: entry by entry, to be judged by the checker.

In: what happens, as it happens. Out: one list of entries for each stream, and one for the server as
a whole. Not known here: what is right (see `checker`), sockets.

Times are of the system's monotonic clock, which all processes of a machine share.
"""

import collections
import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

How = Literal["whole", "cut", "left"]
"""How a response ended for its reader: its body was complete; it was cut, by whom ever; the reader
itself went away."""


EngineAct = Literal["submitted", "token", "cancelled", "finished"]


class Attached(NamedTuple):
    """A response to a reader began. The events after `after` are to come; -1: all of them."""

    time: float
    reader: str
    after: int


class Got(NamedTuple):
    """A delta came: its event id (None where the stream is not resumable), its index in the log,
    its text, and the data as they were on the wire."""

    time: float
    reader: str
    event_id: int | None
    at: int
    text: str
    data: bytes


class Ended(NamedTuple):
    """A terminal event came. `error` is the code of a failure, or ""."""

    time: float
    reader: str
    event_id: int | None
    at: int
    reason: str
    error: str
    completion_tokens: int
    data: bytes


class Detached(NamedTuple):
    """A response ended."""

    time: float
    reader: str
    how: How


class Refused(NamedTuple):
    """A reader was answered with a status other than 200."""

    time: float
    reader: str
    status: int
    code: str


class Abort(NamedTuple):
    """Somebody wanted the stream's end: a DELETE was sent, or its only client went."""

    time: float
    how: Literal["delete", "disconnect", "linger"]


class Told(NamedTuple):
    """DELETE's answer: how the stream ended."""

    time: float
    reason: str


class EngineDid(NamedTuple):
    """What the engine's own process reports: it took the request, made a token, was told to stop,
    came to an end by itself."""

    time: float
    what: EngineAct


class HeldBytes(NamedTuple):
    """What the server and its kernel held for a reader."""

    time: float
    reader: str
    held: int


Entry = Attached | Got | Ended | Detached | Refused | Abort | Told | EngineDid | HeldBytes


class Held(NamedTuple):
    """So many things of a kind there were, `before` the load or `after` it."""

    time: float
    phase: Literal["before", "after"]
    what: str
    number: float


@dataclass(frozen=True)
class Truth:
    """What a stream must say if nobody ends it, and how it then ends. `word` is in each of its
    tokens, and in no other stream's; "" where the tokens do not name their stream."""

    text: str
    reason: str
    num_tokens: int
    word: str = ""
    may_be_cancelled: bool = False
    may_fail: bool = False


def numbered(word: str, *, length: int, max_tokens: int) -> Truth:
    """What the mock engine with numbered=true says to a prompt that begins with `word`."""
    num_tokens = min(length, max_tokens)
    text = "".join([f"{word}:{index} " for index in range(num_tokens)])
    return Truth(text, "stop" if length <= max_tokens else "length", num_tokens, word)


@dataclass
class StreamHistory:
    """One stream: what it should say, and all that was seen of it."""

    stream: str
    truth: Truth
    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)


class History:
    """Everything that was seen in a run."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamHistory] = {}
        self.server: list[Held] = []
        # What the engine said of streams that no client has named yet.
        self._unnamed: dict[str, list[Entry]] = collections.defaultdict(list)

    def open(self, stream: str, truth: Truth) -> StreamHistory:
        """A stream has got its id."""
        opened = StreamHistory(stream, truth, self._unnamed.pop(stream, []))
        self.streams[stream] = opened
        return opened

    def add(self, stream: str, entry: Entry) -> None:
        """Something was seen of a stream."""
        if known := self.streams.get(stream):
            known.add(entry)
        else:
            self._unnamed[stream].append(entry)

    def hold(self, phase: Literal["before", "after"], counts: dict[str, float]) -> None:
        """So much there was, before the load or after it."""
        now = time.monotonic()
        self.server += [Held(now, phase, what, count) for what, count in counts.items()]

    def take(self, stream: str) -> StreamHistory:
        """A stream's history, which is then forgotten here: what a long run does with its own."""
        return self.streams.pop(stream)
