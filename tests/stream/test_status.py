"""What a stream tells those who watch it, in the order of what happens."""

from typing import Any

from penstock.engine.protocol import Addition
from penstock.stream.reader import Reader
from penstock.stream.status import Status
from penstock.stream.stream import Stream
from tests.support.replicas import ReplicaInTest, started
from tests.support.scripted import settle
from tests.support.shared_store import Shared


class Log:
    """A watcher that keeps what it is told, with the index in the log."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, int | None]] = []

    def tell(self, status: Status, index: int) -> None:
        read = status.read_tokens or status.prompt_tokens
        self.told.append((index, status.state, read if status.tokens is None else status.tokens))


async def replica() -> ReplicaInTest:
    only = ReplicaInTest(Shared(), "only")
    await started(only)
    return only


async def test_a_prompt_is_read_by_and_by_and_then_tokens_come() -> None:
    server = await replica()
    stream, log = server.open("a", resumable=False), Log()
    stream.watch(log)
    sink = server.engine.sinks["a"]
    server.begins("a")
    sink.working(2)
    server.generates("a", "one ", "two ")
    sink.working(3)  # too late to matter
    assert log.told == [(0, "prefill", 3), (0, "prefill", 2), (0, "generating", 0)]


async def test_who_comes_later_is_told_what_the_stream_does_now() -> None:
    server = await replica()
    stream = server.open("a", resumable=False)
    early, late, last = Log(), Log(), Log()
    stream.watch(early)
    assert early.told == []  # the engine has not begun
    server.begins("a")
    server.generates("a", "one ", "two ")
    stream.watch(late)
    assert late.told == [(0, "generating", 2)]
    stream.silent(3.0, 10.0)
    stream.watch(last)
    assert last.told == [(2, "stalled", None)]
    stream.silent(0.0, 10.0)
    assert last.told[1:] == late.told[2:] == [(2, "generating", 2)]


async def test_nobody_is_told_after_the_end_or_after_leaving() -> None:
    server = await replica()
    stream, left, stays = server.open("a", resumable=False), Log(), Log()
    stream.watch(left)
    stream.watch(stays)
    stream.unwatch(left)
    server.begins("a")
    server.generates("a", "one ")
    server.finishes("a", 1)
    stream.silent(3.0, 10.0)
    stream.lost()
    late = Log()
    stream.watch(late)
    assert left.told == late.told == []
    assert [state for _, state, _ in stays.told] == ["prefill", "generating"]


async def test_an_answer_that_waits_for_an_upstream_says_so_until_tokens_come() -> None:
    server = await replica()
    stream, log, late = server.open("a", resumable=False), Log(), Log()
    stream.watch(log)
    server.begins("a")
    server.generates("a", "one ", "two ")
    stream.interrupted(waits=True)
    stream.watch(late)
    stream.interrupted(waits=False)
    server.generates("a", "three ", "four ")
    after = [(2, "waiting", 2), (2, "continuing", 2), (2, "generating", 2)]
    assert log.told == [(0, "prefill", 3), (0, "generating", 0), *after]
    assert late.told == after
    assert stream.trouble is None


async def test_a_request_that_waits_for_an_upstream_begins_its_response() -> None:
    server = await replica()
    stream = server.open("a", resumable=False)
    assert not stream.was_accepted.done()
    stream.interrupted(waits=True)
    assert stream.was_accepted.result() is None
    assert stream.trouble is not None
    server.begins("a")
    assert stream.trouble is None


async def test_a_reader_elsewhere_is_told_that_the_stream_was_taken_over() -> None:
    shared = Shared()
    owner, other = ReplicaInTest(shared, "owner"), ReplicaInTest(shared, "other")
    await started(owner, other)
    owner.open("a")
    owner.begins("a")
    owner.generates("a", "one ", "two ")
    log = Log()
    copy: Stream = await other.streams.find_anywhere("a")
    Reader(copy)  # otherwise the copy would not be followed
    copy.watch(log)
    owner.die()
    await settle()
    other.begins("a")
    other.says(Addition("a", "three", 1, (3,)))
    assert log.told == [
        (0, "generating", 2),
        (2, "moved", 2),
        (2, "prefill", 5),
        (2, "generating", 2),
    ]


async def test_a_stream_that_nobody_watches_makes_no_status(monkeypatch: Any) -> None:
    made: list[str] = []
    monkeypatch.setattr("penstock.stream.stream.Status", lambda state, **_: made.append(state))
    server = await replica()
    server.open("a", resumable=False)
    server.begins("a")
    server.engine.sinks["a"].working(2)
    server.generates("a", "one ", "two ")
    server.finishes("a", 2)
    assert made == []
