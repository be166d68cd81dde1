"""Statuses between the frames of a stream's events, in the order in which things happened."""

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.events import Delta, Event
from penstock.stream.reader import Batch
from penstock.stream.status import Status, Watcher
from penstock.web.statuses import MAX_PENDING, StatusLines, status_comment, status_event


@dataclass
class FakeStream:
    watchers: list[Watcher] = field(default_factory=list)

    def watch(self, watcher: Watcher) -> None:
        self.watchers.append(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        self.watchers.remove(watcher)


@dataclass
class FakeReader:
    """A reader that has taken the events before `cursor`."""

    stream: FakeStream = field(default_factory=FakeStream)
    cursor: int = 0
    num_wakes: int = 0

    def wake(self) -> None:
        self.num_wakes += 1


def lines_of(reader: Any) -> StatusLines:
    return StatusLines(reader, status_comment)


def frame(batches: list[Batch]) -> bytes:
    return b"".join(b"%s\n" % event.text.encode() for _, events in batches for event in events)  # type: ignore[union-attr] # deltas only


def deltas(first: int, end: int) -> list[Event]:
    return [Delta(f"d{index}", 1) for index in range(first, end)]


def test_a_status_is_a_comment_of_one_line_or_an_event_without_an_id() -> None:
    status = Status("restarting", tokens=31)
    assert status_comment(status) == b': status {"state":"restarting","tokens":31}\n'
    assert status_event(status) == b'event: status\ndata: {"state":"restarting","tokens":31}\n\n'


@given(
    told=st.lists(st.integers(0, 12), max_size=MAX_PENDING).map(sorted),
    cuts=st.lists(st.integers(0, 12), max_size=4).map(sorted),
)
def test_every_status_stands_after_the_events_before_it_and_before_those_after_it(
    told: list[int], cuts: list[int]
) -> None:
    reader = FakeReader()
    lines = lines_of(reader)
    for number, index in enumerate(told):
        state: Any = ("prefill", "generating")[number % 2]  # none replaces the one before it
        lines.tell(Status(state, tokens=index), index)
    assert reader.num_wakes == len(told)
    sent = b""
    for end in [*cuts, 12]:
        batch = deltas(reader.cursor, end)
        reader.cursor = end
        sent += lines.weave([(0, batch)] if batch else [], frame)
    num_events, seen = 0, []
    for line in sent.decode().splitlines():
        if line.startswith("d"):
            assert line == f"d{num_events}"
            num_events += 1
        else:
            assert json.loads(line.removeprefix(": status "))["tokens"] == num_events
            seen.append(num_events)
    assert (num_events, seen) == (12, told)


def test_a_status_replaces_the_one_that_nobody_has_read_and_a_repetition_is_dropped() -> None:
    reader = FakeReader()
    lines = lines_of(reader)
    for seconds in (1.0, 2.0, 3.0, 3.0):
        lines.tell(Status("stalled", seconds=seconds, limit=10.0), 0)
    assert lines.weave([], frame) == b': status {"state":"stalled","seconds":3.0,"limit":10.0}\n'
    assert reader.num_wakes == 3
    lines.tell(Status("stalled", seconds=3.0, limit=10.0), 0)
    assert not lines.pending


def test_a_client_that_does_not_read_holds_few_statuses() -> None:
    lines = lines_of(FakeReader())
    for index in range(1000):
        lines.tell(Status("restarting", tokens=index), index)
    assert [index for index, _ in lines.pending] == list(range(1000 - MAX_PENDING, 1000))


def test_a_closed_response_watches_no_more() -> None:
    reader = FakeReader()
    lines = lines_of(reader)
    lines.open()
    assert reader.stream.watchers == [lines]
    lines.close()
    assert reader.stream.watchers == []
