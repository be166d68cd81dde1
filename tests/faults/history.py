"""The record of a run: everything that clients saw, and that a reporting engine did.

In: entries, as things happen. Out: a list of entries for each stream, and one for the server. It
knows nothing about sockets, or about what is right (see `checker`).

Times are the system's monotonic clock, which all processes of a machine share.
"""

import collections
import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

How = Literal["whole", "cut", "left"]
"""How a response ended for its reader: "whole" if the body was complete, "cut" if anything cut it,
"left" if the reader itself left."""


EngineAct = Literal["submitted", "token", "cancelled", "finished"]


class Attached(NamedTuple):
    """A response to a reader began, with the events after `after`; -1 means all events."""

    time: float
    reader: str
    after: int


class Got(NamedTuple):
    """A delta came.

    `event_id` is None if the stream is not resumable, `at` is the index in the log, and `data` are
    the bytes on the wire.
    """

    time: float
    reader: str
    event_id: int | None
    at: int
    text: str
    data: bytes


class Ended(NamedTuple):
    """A terminal event came. `error` is the code of a failure, or empty."""

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
    """A reader got a status other than 200."""

    time: float
    reader: str
    status: int
    code: str


class Abort(NamedTuple):
    """A stream is to end: a DELETE was sent, its only client left, or its linger time passed."""

    time: float
    how: Literal["delete", "disconnect", "linger"]


class Told(NamedTuple):
    """A DELETE was answered with the reason for which the stream ended."""

    time: float
    reason: str


class EngineDid(NamedTuple):
    """A report of the engine's process: it took the request, made a token, was cancelled, or
    finished by itself."""

    time: float
    what: EngineAct


class HeldBytes(NamedTuple):
    """The bytes that the server and its kernel held for a reader."""

    time: float
    reader: str
    held: int


Entry = Attached | Got | Ended | Detached | Refused | Abort | Told | EngineDid | HeldBytes


class Held(NamedTuple):
    """The number of things of a kind, `before` or `after` the load."""

    time: float
    phase: Literal["before", "after"]
    what: str
    number: float


@dataclass(frozen=True)
class Truth:
    """The text of a stream that nothing interrupts, and the reason for which it ends.

    `word` is in each of the stream's tokens and in no other stream's. It is empty if the tokens do
    not name their stream.
    """

    text: str
    reason: str
    num_tokens: int
    word: str = ""
    may_be_cancelled: bool = False
    may_fail: bool = False


def numbered(word: str, *, length: int, max_tokens: int) -> Truth:
    """Return the answer of a mock engine with numbered=true to a prompt that begins with `word`."""
    num_tokens = min(length, max_tokens)
    text = "".join([f"{word}:{index} " for index in range(num_tokens)])
    return Truth(text, "stop" if length <= max_tokens else "length", num_tokens, word)


@dataclass
class StreamHistory:
    """One stream: its truth, and everything seen of it."""

    stream: str
    truth: Truth
    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)


class History:
    """Everything seen in a run."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamHistory] = {}
        self.server: list[Held] = []
        # Reports of the engine about streams whose ids no client has sent yet.
        self._unnamed: dict[str, list[Entry]] = collections.defaultdict(list)

    def open(self, stream: str, truth: Truth) -> StreamHistory:
        """Add a stream whose id is known."""
        opened = StreamHistory(stream, truth, self._unnamed.pop(stream, []))
        self.streams[stream] = opened
        return opened

    def add(self, stream: str, entry: Entry) -> None:
        """Add an entry to a stream."""
        if known := self.streams.get(stream):
            known.add(entry)
        else:
            self._unnamed[stream].append(entry)

    def hold(self, phase: Literal["before", "after"], counts: dict[str, float]) -> None:
        """Record what the server holds before or after the load."""
        now = time.monotonic()
        self.server += [Held(now, phase, what, count) for what, count in counts.items()]

    def take(self, stream: str) -> StreamHistory:
        """Remove and return a stream's history, so that a long run does not keep them all."""
        return self.streams.pop(stream)
