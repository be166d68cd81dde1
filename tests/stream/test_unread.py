"""Requests that wait, unread, until an engine knows its model."""

import asyncio

import pytest

from penstock.errors import Problem
from penstock.events import Failure
from penstock.request import Request
from penstock.stream.admission import UNREAD, Admission
from penstock.stream.memory import MemoryGuard
from penstock.stream.quotas import ANYBODY, Owner, OwnerLimits
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Limits, Streams, draining
from penstock.stream.stream import Stream
from penstock.stream.unread import Unread
from tests.support.replicas import ReplicaInTest
from tests.support.scripted import ScriptedEngine, settle
from tests.support.shared_store import Shared

PATIENCE_S = 100.0
A_SECOND_OWNER = Owner("second")


class Early:
    """Streams over an engine that has no model yet."""

    def __init__(self, slots: int = 1, max_queue: int = 3, patience: float = PATIENCE_S) -> None:
        self.engine = ScriptedEngine(slots)
        self.engine.is_loading, self.engine.info = True, None
        self.admission = Admission(0, max_queue)
        self.streams = Streams([self.engine], Limits(restart_timeout=0.01), None, self.admission)
        self.unread = Unread(self.streams, patience)
        self.slots = slots

    def wait(self, owner: Owner = ANYBODY, timeout: float | None = None) -> Stream:
        return self.unread.open(owner, "{}", timeout)

    def comes(self) -> None:
        """The engine has its model."""
        self.engine.is_loading = False
        self.admission.num_slots = self.slots
        self.unread.model_is_known()

    def open(self, name: str, owner: Owner = ANYBODY, *, has_place: bool = False) -> Stream:
        record = StreamRecord(Request(name, 10, prompt="x"), owner)
        (stream,) = self.streams.open_all([record], has_place=has_place)
        return stream


async def test_requests_go_on_in_their_order_and_take_only_their_own_places() -> None:
    early = Early(slots=1, max_queue=3)
    waiting = [early.wait() for _ in range(3)]
    with pytest.raises(Problem, match="The queue is full"):
        early.wait()
    early.wait(A_SECOND_OWNER)  # one owner's flood keeps nobody else out
    order: list[int] = []

    async def go_on(number: int, stream: Stream) -> None:
        await early.unread.until_known(stream)
        order.append(number)
        early.unread.leave(stream)
        early.open(str(number), has_place=True)

    tasks = [asyncio.create_task(go_on(*each)) for each in enumerate(waiting)]
    await settle()
    assert early.engine.submitted == []
    early.comes()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
    assert [each.id for each in early.engine.submitted] == ["0"]
    assert early.admission.num_waiting == 3, "the second owner's is not read yet"
    with pytest.raises(Problem, match="The queue is full"):
        early.open("new")


async def test_a_request_that_is_not_read_yet_keeps_no_other_from_a_slot() -> None:
    early = Early(slots=2)
    slow = early.wait()  # its body is being read
    early.comes()
    early.open("first")
    assert [each.id for each in early.engine.submitted] == ["first"]
    early.unread.leave(slow)
    early.open("second")
    assert [each.id for each in early.engine.submitted] == ["first", "second"]
    assert UNREAD not in early.admission.bounds


async def test_the_wait_is_no_recovery_of_an_engine() -> None:
    early = Early(patience=0.05)
    stream = early.wait()
    await early.unread.until_known(stream)  # five times as long as an engine may take to restart
    assert not early.streams.is_recovering
    assert isinstance(stream.ended, Failure)
    assert stream.ended.code == "engine_loading"
    early.unread.leave(stream)
    assert len(early.streams) == 0
    assert early.admission.num_waiting == 0


async def test_a_key_keeps_its_limit_of_streams() -> None:
    early = Early()
    owner = Owner("key a", OwnerLimits(max_streams=1), key_id="a")
    first = early.wait(owner)
    with pytest.raises(Problem, match="may have 1 streams"):
        early.wait(owner)
    early.unread.leave(first)
    early.comes()
    early.open("x", owner)


async def test_a_request_that_leaves_is_counted_as_moved_and_ends_no_more() -> None:
    early = Early()
    stream = early.wait()
    early.unread.leave(stream)
    stream.cancel(client_gone=True)
    assert stream.ended is None
    assert early.streams.meter.num_ended == {("moved", ""): 1}


async def test_what_waits_is_refused_when_no_model_comes() -> None:
    early = Early()
    stream = early.wait()
    early.unread.refuse(draining)
    await early.unread.until_known(stream)
    assert isinstance(stream.ended, Failure)
    assert stream.ended.code == "draining"
    early.unread.leave(stream)
    with pytest.raises(Problem) as refused:
        early.wait()
    assert refused.value.code == "draining"


async def test_the_memory_guard_knows_the_bodies_and_can_end_the_wait() -> None:
    early = Early()
    body = "x" * 100_000
    stream = early.unread.open(ANYBODY, body, None)
    assert early.streams.bytes_by_state()["waiting"] > len(body)
    guard = MemoryGuard(10_000, early.streams, lambda: 0, lambda: None)
    guard.look(1.0)
    await early.unread.until_known(stream)
    assert isinstance(stream.ended, Failure)
    assert stream.ended.code == "memory_full"


async def test_a_waiting_request_writes_nothing_into_the_store() -> None:
    shared = Shared()
    replica = ReplicaInTest(shared, "a")
    unread = Unread(replica.streams, PATIENCE_S)
    stream = unread.open(ANYBODY, "{}", None)
    await settle()
    assert (shared.logs, shared.values) == ({}, {})
    unread.leave(stream)
    await settle()
    assert (shared.logs, shared.values) == ({}, {})
    replica.open("stored")
    await settle()
    assert list(shared.logs) == ["stored"], "so this test would see what is written"
