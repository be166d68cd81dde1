"""When the memory is full: what is refused, and what is dropped first."""

import pytest

from penstock.request import Request
from penstock.stream.admission import Admission
from penstock.stream.memory import GROWTH_PAUSE_S, MemoryGuard
from penstock.stream.registry import Limits, Streams
from penstock.stream.stream import Stream
from tests.support.owners import ALICE, BOB
from tests.support.problems import raises_problem
from tests.support.replicas import ReplicaInTest, started
from tests.support.scripted import ScriptedEngine, ask, opened, speak
from tests.support.shared_store import Shared

LIMIT = 10_000_000


class Process:
    """A process whose memory a test sets."""

    def __init__(self) -> None:
        self.resident: int | None = 1_000_000
        self.num_returns = 0

    def measure(self) -> int | None:
        return self.resident

    def return_freed(self) -> None:
        self.num_returns += 1


def guarded(slots: int = 0, body_bytes: int = 0) -> tuple[Streams, Process, MemoryGuard]:
    streams = Streams([ScriptedEngine()], Limits(), admission=Admission(slots))
    process = Process()
    guard = MemoryGuard(LIMIT, streams, lambda: body_bytes, process.measure, process.return_freed)
    return streams, process, guard


def large(name: str, size: int) -> Request:
    return Request(id=name, max_tokens=5, prompt="x" * size)


def kept(streams: Streams, name: str, size: int) -> Stream:
    stream = opened(streams, ask(name), resumable=True, owner=ALICE)
    speak(stream, "x" * size)
    return stream


async def test_a_server_with_enough_memory_takes_requests() -> None:
    streams, process, guard = guarded()
    process.resident = 8_400_000
    opened(streams, large("a", 9_000_000))
    guard.look(0)
    assert not streams.memory_is_full


async def test_nearly_full_memory_refuses_until_it_is_no_longer_full() -> None:
    streams, process, guard = guarded()
    stream = opened(streams, large("a", 9_000_000))
    process.resident = 8_600_000
    guard.look(0)
    with raises_problem("memory_full") as refused:
        streams.check()
    assert refused.value.status == 503
    assert int(refused.value.headers["Retry-After"]) > 0
    assert stream.ended is None  # nothing that runs is ended yet
    process.resident = 8_000_000
    guard.look(1)
    streams.check()


async def test_memory_that_only_the_allocator_holds_does_not_count() -> None:
    streams, process, guard = guarded()
    process.resident = 9_900_000
    opened(streams, large("a", 4_000_000))  # 1 + 1.5 * 4 million
    guard.look(0)
    assert not streams.memory_is_full


async def test_bodies_under_way_count() -> None:
    streams, process, guard = guarded(body_bytes=6_000_000)
    process.resident = 9_900_000
    guard.look(0)
    assert streams.memory_is_full


async def test_growth_beyond_the_limit_refuses_until_it_stops() -> None:
    streams, process, guard = guarded()
    states = []
    for growth, now in ((1, 0), (0, 4.9), (0, GROWTH_PAUSE_S), (1, 6)):
        process.resident = (process.resident or 0) + growth
        process.resident = max(process.resident, LIMIT + 1)
        guard.look(now)
        states.append(streams.memory_is_full)
    assert states == [True, True, False, True]


async def test_kept_streams_are_dropped_first_the_oldest_first_and_only_as_many_as_needed() -> None:
    streams, process, guard = guarded()
    for name in "abcd":
        kept(streams, name, 1_000_000)
    running = opened(streams, large("r", 5_000_000))
    process.resident = 9_400_000  # 1.4 million too many
    guard.look(0)
    assert len(streams.kept) == 2
    assert streams.find("d", ALICE).ended is not None
    with raises_problem("history_lost"):
        streams.find("b", ALICE)
    assert running.ended is None
    assert process.num_returns == 1


async def test_open_streams_end_when_nothing_else_helps_waiting_and_unread_ones_first() -> None:
    streams, process, guard = guarded(slots=3)
    read, unread, small = (
        opened(streams, large(name, size), owner=BOB)
        for name, size in (("r", 5_000_000), ("u", 1_000_000), ("s", 1000))
    )
    waiting = opened(streams, large("w", 500_000), owner=ALICE)
    for stream in (read, small):
        stream.attach(Reader())
    process.resident = 9_600_000  # 1.6 million too many
    guard.look(0)
    assert waiting.ended is not None
    assert unread.ended is not None
    assert read.ended is not None
    assert small.ended is None
    assert waiting.ended.code == "memory_full"  # type: ignore[union-attr] # a failure
    assert waiting.ended.retry_safe  # type: ignore[union-attr] # a failure


class Reader:
    lag = 0
    is_cut = False

    def wake(self, logged_at: float = 0.0) -> None:
        pass

    def cut(self) -> None:
        self.is_cut = True


async def followed(owner: ReplicaInTest, other: ReplicaInTest, name: str, size: int) -> Reader:
    """Open a stream at a replica and read it at another one."""
    owner.open(name)
    owner.begins(name)
    owner.generates(name, "x" * size)
    reader = Reader()
    (await other.streams.find_anywhere(name)).attach(reader)
    return reader


async def test_full_memory_shows_no_more_streams_of_other_replicas_and_cuts_the_largest() -> None:
    shared = Shared()
    owner, other = ReplicaInTest(shared, "owner"), ReplicaInTest(shared, "other")
    await started(owner, other)
    process = Process()
    guard = MemoryGuard(LIMIT, other.streams, lambda: 0, process.measure, process.return_freed)
    running = other.open("running")
    small = await followed(owner, other, "small", 1000)
    large = await followed(owner, other, "large", 6_000_000)
    process.resident = 8_700_000
    guard.look(0)
    assert other.streams.memory_is_full
    assert guard.held_bytes()["followed"] > 6_000_000
    owner.open("new")
    with raises_problem("memory_full"):
        await other.streams.find_anywhere("new")
    await other.streams.find_anywhere("large")  # it is shown already
    assert not large.is_cut
    process.resident = 9_600_000
    guard.look(1)
    assert (large.is_cut, small.is_cut) == (True, False)
    assert running.ended is None  # what can go on elsewhere goes first
    assert process.num_returns == 1


@pytest.mark.parametrize("body_bytes", [0, 6_000_000])
async def test_without_the_system_s_figure_only_what_is_held_counts(body_bytes: int) -> None:
    streams, process, guard = guarded(body_bytes=body_bytes)
    process.resident = None
    guard.look(0)
    assert streams.memory_is_full == bool(body_bytes)
