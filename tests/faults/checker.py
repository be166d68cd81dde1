"""Judge a history by the invariants of docs/behavior.md.

In: a history's entries. Out: a verdict. Pure, without sockets or clocks.

I1   A reader gets a part of the true text, byte for byte, that begins where it asked.
I2   A reader's event ids rise by exactly 1, across reconnects: no event is lost or repeated.
I3   A stream has exactly one terminal event, the same for all readers, and nothing follows it.
I4   A terminal event reports success only if the stream is complete; a cut is never success.
I5   The engine makes hardly a token after a stream is to end.
I6   Every stream that began also ended, in one way.
I7   No token of a stream reaches a reader of another stream.
I8   After the load, the server holds no more than before it.
I9   The bytes held for a reader stay below the cap.
I10  Every reader was entitled to what it read. Not judged yet: it needs keys.
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
    """Tolerances. `slack` maps a resource to how much more of it may be held after the load."""

    tokens_after_abort: int = 2
    bytes_per_reader: int = 256 * 1024
    slack: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Breach:
    """A broken invariant."""

    invariant: str
    stream: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}  {self.stream or 'the server'}: {self.what}"


@dataclass
class Verdict:
    """The breaches found, and counts of everything judged."""

    breaches: list[Breach] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    endings: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def holds(self) -> bool:
        """True if every invariant held."""
        return not self.breaches

    def broken(self) -> set[str]:
        """Return the names of the broken invariants."""
        return {breach.invariant for breach in self.breaches}

    def add(self, other: "Verdict") -> None:
        """Add the verdict on another part of the run."""
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
            lines.append("every invariant held (I10, entitlement, is not judged yet)")
        else:
            each = collections.Counter(breach.invariant for breach in self.breaches)
            lines.append("BROKEN: " + ", ".join(f"{name} x{n}" for name, n in sorted(each.items())))
            lines += [f"  {breach}" for breach in self.breaches[:SHOWN]]
            if len(self.breaches) > SHOWN:
                lines.append(f"  and {len(self.breaches) - SHOWN} more")
        return "\n".join(lines)


def judge(history: History, rules: Rules | None = None) -> Verdict:
    """Return the verdict on a whole history."""
    rules = rules or Rules()
    verdict = Verdict()
    for stream in history.streams.values():
        verdict.add(judge_stream(stream, rules))
    verdict.breaches += judge_server(history.server, rules)
    return verdict


def judge_server(held: Iterable[Held], rules: Rules | None = None) -> list[Breach]:
    """Return the breaches of I8: everything held after the load beyond what was held before it."""
    slack = (rules or Rules()).slack
    counts = {(each.phase, each.what): each.number for each in held}
    breaches = []
    for (phase, what), after in counts.items():
        before = counts.get(("before", what), 0.0)
        if phase == "after" and after > before + slack.get(what, 0.0):
            breaches.append(Breach("I8", "", f"{what}: {before:g} before, {after:g} after"))
    return breaches


def judge_stream(history: StreamHistory, rules: Rules | None = None) -> Verdict:
    """Return the verdict on one stream."""
    return _StreamJudge(history, rules or Rules()).verdict()


@dataclass
class _Reader:
    """A logical reader: the same one across its reconnects."""

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
        # Each event's position in the text, known from readers that read from the start, and each
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
        # Readers that begin in the middle are judged by the positions found here.
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
                f"reader {entry.reader} asked for events from {first}, but its next event is"
                f" {reader.next_index}: the client is wrong",
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
            self._breach("I2", f"{name} came instead of {expected}: {index - expected} lost")
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
            self._breach("I1", f"{name} is {data[:80]!r}, but another reader got {first[:80]!r}")

    def _right_text(self, reader: _Reader, entry: Got, name: str) -> None:
        word = self._truth.word
        for named in NAMES_STREAM.findall(entry.text) if word else ():
            if named != word:
                self._breach("I7", f"{name} belongs to {named!r}: {entry.text[:80]!r}")
                return
        if reader.position is None:  # no reader read the events before this reader's first
            reader.position = max(0, self._truth.text.find(entry.text))
        expected = self._truth.text[reader.position : reader.position + len(entry.text)]
        if entry.text != expected:
            self._breach(
                "I1", f"{name} has the text {entry.text[:80]!r} instead of {expected[:80]!r}"
            )
        if not entry.text:
            self._breach("I1", f"{name} has no text")
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
                f"{name} has reason {entry.reason!r} after {reader.position} of {whole} characters",
            )

    def _detached(self, entry: Detached) -> None:
        self._count(entry.how)
        reader = self._readers.setdefault(entry.reader, _Reader())
        if entry.how == "whole" and reader.is_attached and reader.ended is None:
            self._breach(
                "I3", f"reader {entry.reader}: the body ended normally, without a terminal event"
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
                "I3", "readers got different terminal events: " + _list(map(_shown, self._endings))
            )
        ending = next(iter(self._endings.values()), None)
        reasons = self._told | {each.reason for each in self._endings.values()}
        if not reasons:
            self._breach("I6", "no reader and no DELETE told how it ended")
        elif len(self._told) > 1 or (len(reasons) > 1 and len(self._endings) < 2):
            self._breach("I6", f"it ended in more than one way: {_list(reasons)}")
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
            self._breach("I8", "it ended, but the engine still runs it")
        if any(reason not in (truth.reason, "cancelled", "error") for reason in reasons):
            self._breach(
                "I4", f"it ended by {_list(reasons)}, but the engine ends it by {truth.reason}"
            )

    def _judge_reason(self, ending: Ended) -> None:
        truth, reason = self._truth, ending.reason
        wanted = self._abort is not None or truth.may_be_cancelled
        if reason == "cancelled" and not wanted:
            self._breach("I4", "it was cancelled without a cause")
        if reason == "error" and not truth.may_fail:
            self._breach("I4", f"it failed without a cause ({ending.error})")
        if reason == truth.reason and ending.completion_tokens != truth.num_tokens:
            self._breach(
                "I4",
                f"it counts {ending.completion_tokens} tokens; the engine made {truth.num_tokens}",
            )


def _list(things: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, things)))


def _shown(data: bytes) -> str:
    return data[:120].decode("utf-8", "replace")
