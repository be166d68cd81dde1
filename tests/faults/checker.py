"""Judges a history: were the promises kept? Pure: entries in, a verdict out.

The invariants are those of the project's reliability plan:

I1   what a reader got is a part of the truth, byte-equal, and begins where it asked
I2   event ids of one reader go up by exactly 1, across reconnects: nothing lost, nothing twice
I3   exactly one terminal event per stream, the same for all readers, and nothing after it
I4   a stream is said to have come to its end only if it did; a cut is never called success
I5   hardly a token is made after somebody wanted the stream's end
I6   every stream that was begun is accounted for: it ended, in one way
I7   no token of one stream reaches a reader of another
I8   when the load has ended, everything is given back
I9   bytes held for a reader stay under the cap
I10  every reader was entitled to what it read: waits for keys, and is not judged yet
"""

import collections
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.history import (
    Abort,
    Attached,
    Detached,
    Ended,
    EngineDid,
    Got,
    Held,
    HeldBytes,
    History,
    Refused,
    StreamHistory,
    Told,
)

SHOWN = 20
NAMES_STREAM = re.compile(r"(\S+):\d+ ")


@dataclass(frozen=True)
class Rules:
    """What is tolerated. `slack`: how much more of a thing may be held after the load."""

    tokens_after_abort: int = 2
    bytes_per_reader: int = 256 * 1024
    slack: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Breach:
    """An invariant that did not hold."""

    invariant: str
    stream: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}  {self.stream or 'the server'}: {self.what}"


@dataclass
class Verdict:
    """Breaches, and counts of what was judged."""

    breaches: list[Breach] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    endings: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def holds(self) -> bool:
        """Whether every invariant held."""
        return not self.breaches

    def broken(self) -> set[str]:
        """The invariants that did not hold."""
        return {breach.invariant for breach in self.breaches}

    def add(self, other: "Verdict") -> None:
        """Take in the verdict on another part of the run."""
        self.breaches += other.breaches
        self.counts += other.counts
        self.endings += other.endings

    def __str__(self) -> str:
        count = self.counts
        endings = ", ".join(f"{n} {reason}" for reason, n in sorted(self.endings.items()))
        lines = [
            f"{count['streams']} streams ({endings or 'none ended'}), {count['readers']} readers,"
            f" {count['events']} events read",
            f"{count['responses']} responses: {count['cut']} cut, {count['left']} left,"
            f" {count['refused']} refused; {count['resumed']} resumes",
            f"lost {count['lost']}, duplicated {count['duplicated']},"
            f" reordered {count['reordered']}",
        ]
        if self.holds:
            lines.append("every invariant held (I10, entitlement, waits for keys)")
        else:
            each = collections.Counter(breach.invariant for breach in self.breaches)
            lines.append("BROKEN: " + ", ".join(f"{name} x{n}" for name, n in sorted(each.items())))
            lines += [f"  {breach}" for breach in self.breaches[:SHOWN]]
            if len(self.breaches) > SHOWN:
                lines.append(f"  and {len(self.breaches) - SHOWN} more")
        return "\n".join(lines)


def judge(history: History, rules: Rules | None = None) -> Verdict:
    """The verdict on a whole history."""
    rules = rules or Rules()
    verdict = Verdict()
    for stream in history.streams.values():
        verdict.add(judge_stream(stream, rules))
    verdict.breaches += judge_server(history.server, rules)
    return verdict


def judge_server(held: Iterable[Held], rules: Rules | None = None) -> list[Breach]:
    """I8: what is held after the load is no more than before it."""
    slack = (rules or Rules()).slack
    counts = {(each.phase, each.what): each.number for each in held}
    breaches = []
    for (phase, what), after in counts.items():
        before = counts.get(("before", what), 0.0)
        if phase == "after" and after > before + slack.get(what, 0.0):
            breaches.append(Breach("I8", "", f"{what}: {before:g} before, {after:g} after"))
    return breaches


def judge_stream(history: StreamHistory, rules: Rules | None = None) -> Verdict:
    """The verdict on one stream."""
    return _StreamJudge(history, rules or Rules()).verdict()


@dataclass
class _Reader:
    """A logical reader, across its reconnects."""

    next_index: int = 0
    first_index: int = 0
    position: int | None = 0
    seen: set[int] = field(default_factory=set)
    is_attached: bool = False
    ended: Ended | None = None


class _StreamJudge:
    def __init__(self, history: StreamHistory, rules: Rules) -> None:
        self._stream = history.stream
        self._truth = history.truth
        self._entries = sorted(history.entries, key=lambda entry: entry.time)
        self._rules = rules
        self._readers: dict[str, _Reader] = {}
        # Where in the text each event begins, from the readers who read from the start; and each
        # event's bytes, which are the same for every reader.
        self._starts: dict[int, int] = {0: 0}
        self._data: dict[int, bytes] = {}
        self._endings: dict[bytes, Ended] = {}
        self._told: set[str] = set()
        self._abort: Abort | None = None
        self._tokens_after_abort = 0
        self._engine_has_it = False
        self._result = Verdict(counts=collections.Counter(streams=1))

    def verdict(self) -> Verdict:
        # A reader that begins in the middle is judged by where those from the start were there.
        self._find_starts()
        for entry in self._entries:
            match entry:
                case Attached():
                    self._attached(entry)
                case Got():
                    self._got(entry)
                case Ended():
                    self._ended(entry)
                case Detached():
                    self._detached(entry)
                case Refused():
                    self._count("refused")
                case Abort():
                    self._abort = self._abort or entry
                case Told():
                    self._told.add(entry.reason)
                case EngineDid():
                    self._engine_did(entry)
                case HeldBytes(_, reader, held):
                    if held > self._rules.bytes_per_reader:
                        self._breach("I9", f"{held} bytes were held for reader {reader}")
        self._judge_ending()
        self._result.counts["readers"] = len(self._readers)
        return self._result

    def _breach(self, invariant: str, what: str) -> None:
        self._result.breaches.append(Breach(invariant, self._stream, what))

    def _count(self, what: str, number: int = 1) -> None:
        self._result.counts[what] += number

    def _find_starts(self) -> None:
        texts: dict[int, str] = {}
        for entry in self._entries:
            if isinstance(entry, Got):
                texts.setdefault(entry.at, entry.text)
        position = 0
        for index in range(len(texts)):
            if index not in texts:
                break
            position += len(texts[index])
            self._starts[index + 1] = position

    def _attached(self, entry: Attached) -> None:
        self._count("responses")
        first = entry.after + 1
        reader = self._readers.get(entry.reader)
        if reader is None:
            self._readers[entry.reader] = _Reader(
                first, first, self._starts.get(first), is_attached=True
            )
            return
        self._count("resumed")
        reader.is_attached = True
        if first != reader.next_index:
            self._breach(
                "I2",
                f"reader {entry.reader} asked for events from {first}, and had those before"
                f" {reader.next_index}: its client is wrong",
            )

    def _got(self, entry: Got) -> None:
        self._count("events")
        reader = self._readers.setdefault(entry.reader, _Reader())
        name = f"reader {entry.reader}, event {entry.at}"
        if reader.ended is not None:
            self._breach("I3", f"{name} came after the terminal event")
        if not self._is_in_order(reader, entry.event_id, entry.at, name):
            reader.position = self._starts.get(entry.at + 1)
            return
        self._same_bytes(entry.at, entry.data, name)
        self._right_text(reader, entry, name)

    def _is_in_order(self, reader: _Reader, event_id: int | None, index: int, name: str) -> bool:
        if event_id is not None and event_id != index:
            self._breach(
                "I2", f"{name} has id {event_id} on the wire and index {index} in its data"
            )
        expected, reader.next_index = reader.next_index, max(reader.next_index, index + 1)
        is_new = index not in reader.seen and index >= reader.first_index
        reader.seen.add(index)
        if index == expected:
            return True
        if index > expected:
            self._count("lost", index - expected)
            self._breach("I2", f"{name} came where {expected} was next: {index - expected} lost")
        elif is_new:
            self._count("reordered")
            self._count("lost", -1)  # it was late, not lost
            self._breach("I2", f"{name} came late, after {expected - 1}: reordered")
        else:
            self._count("duplicated")
            self._breach("I2", f"{name} came twice")
        return False

    def _same_bytes(self, index: int, data: bytes, name: str) -> None:
        first = self._data.setdefault(index, data)
        if data != first:
            self._breach("I1", f"{name} is {data[:80]!r}, and was {first[:80]!r} for another")

    def _right_text(self, reader: _Reader, entry: Got, name: str) -> None:
        word = self._truth.word
        for named in NAMES_STREAM.findall(entry.text) if word else ():
            if named != word:
                self._breach("I7", f"{name} belongs to {named!r}: {entry.text[:80]!r}")
                return
        if reader.position is None:  # nobody read the events before its first one
            reader.position = max(0, self._truth.text.find(entry.text))
        expected = self._truth.text[reader.position : reader.position + len(entry.text)]
        if entry.text != expected:
            self._breach("I1", f"{name} says {entry.text[:80]!r} and should say {expected[:80]!r}")
        if not entry.text:
            self._breach("I1", f"{name} says nothing")
        reader.position += len(entry.text)

    def _ended(self, entry: Ended) -> None:
        self._count("events")
        reader = self._readers.setdefault(entry.reader, _Reader())
        name = f"reader {entry.reader}, terminal event {entry.at}"
        if reader.ended is not None:
            self._breach("I3", f"{name} came after another terminal event")
        reader.ended = entry
        self._is_in_order(reader, entry.event_id, entry.at, name)
        self._endings.setdefault(entry.data, entry)
        whole = len(self._truth.text)
        succeeded = entry.reason in ("stop", "length")
        if succeeded and reader.position is not None and reader.position < whole:
            self._breach(
                "I4",
                f"{name} says {entry.reason!r} after {reader.position} of {whole} characters",
            )

    def _detached(self, entry: Detached) -> None:
        self._count(entry.how)
        reader = self._readers.setdefault(entry.reader, _Reader())
        if entry.how == "whole" and reader.is_attached and reader.ended is None:
            self._breach(
                "I3", f"reader {entry.reader}: a body ended as if whole, without a terminal event"
            )
        reader.is_attached = False

    def _engine_did(self, entry: EngineDid) -> None:
        if entry.what == "token":
            self._tokens_after_abort += self._abort is not None
        else:
            self._engine_has_it = entry.what == "submitted"

    def _judge_ending(self) -> None:
        truth = self._truth
        if len(self._endings) > 1:
            self._breach(
                "I3", "readers were told of different ends: " + _list(map(_shown, self._endings))
            )
        ending = next(iter(self._endings.values()), None)
        reasons = self._told | {each.reason for each in self._endings.values()}
        if not reasons:
            self._breach("I6", "nobody knows whether and how it ended")
        elif len(self._told) > 1 or (len(reasons) > 1 and len(self._endings) < 2):
            self._breach("I6", f"it is said to have ended in more than one way: {_list(reasons)}")
        if ending is not None:
            self._judge_reason(ending)
        self._result.endings.update(
            {f"error {ending.error}" if ending is not None and ending.error else reason: 1}
            if (reason := min(reasons, default=""))
            else {}
        )
        if self._tokens_after_abort > self._rules.tokens_after_abort:
            self._breach("I5", f"{self._tokens_after_abort} tokens were made after the abort")
        if self._engine_has_it and reasons:
            self._breach("I8", "it ended, and the engine still has it")
        if any(reason not in (truth.reason, "cancelled", "error") for reason in reasons):
            self._breach(
                "I4", f"it ended by {_list(reasons)}, where the engine says {truth.reason}"
            )

    def _judge_reason(self, ending: Ended) -> None:
        truth, reason = self._truth, ending.reason
        wanted = self._abort is not None or truth.may_be_cancelled
        if reason == "cancelled" and not wanted:
            self._breach("I4", "it was cancelled, and nobody wanted that")
        if reason == "error" and not truth.may_fail:
            self._breach("I4", f"it failed ({ending.error}), and had no reason to")
        if reason == truth.reason and ending.completion_tokens != truth.num_tokens:
            self._breach(
                "I4",
                f"{ending.completion_tokens} tokens were counted, of {truth.num_tokens} that the"
                " engine made",
            )


def _list(things: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, things)))


def _shown(data: bytes) -> str:
    return data[:120].decode("utf-8", "replace")
