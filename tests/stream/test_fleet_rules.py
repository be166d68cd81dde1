"""What a request may do, and what its key allows, also holds at the replica that takes it over."""

import asyncio

import pytest

from penstock.errors import Problem
from penstock.events import Failure, Finish
from penstock.stream.quotas import Owner
from penstock.stream.reader import Reader
from tests.support.replicas import ReplicaInTest, started, text_of
from tests.support.scripted import settle
from tests.support.shared_store import Shared

ALICE = Owner("alice", key_id="1")
BOB = Owner("bob", key_id="2")


async def test_a_server_s_longest_time_bounds_streams_that_it_takes_over() -> None:
    shared = Shared()
    first = ReplicaInTest(shared, "first")
    second = ReplicaInTest(shared, "second", max_timeout=0.05)
    await started(first, second)
    first.open("a", timeout=3600)
    first.begins("a")
    first.die()
    await settle()
    async with asyncio.timeout(20):
        end = await second.streams.find("a").end()
    assert isinstance(end, Finish)
    assert end.reason == "deadline"


async def test_a_stream_that_has_shown_nothing_keeps_its_deadline() -> None:
    shared = Shared()
    first, second = (ReplicaInTest(shared, name) for name in ("first", "second"))
    await started(first, second)
    stream = first.open("a", timeout=3600)  # the engine reads a long prompt, and says nothing
    stream.timer.set_age(2500)
    first.open("b")
    async with asyncio.timeout(20):
        while not any(b"time" in each for each in shared.entries_of("a")):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)
    first.die()
    await settle()
    assert second.streams.find("a").age >= 2500


async def test_a_key_that_was_revoked_meanwhile_ends_its_streams() -> None:
    shared = Shared()

    def problem_of(owner: Owner) -> Problem | None:
        return Problem("revoked_api_key", "It is revoked.") if owner == ALICE else None

    first = ReplicaInTest(shared, "first")
    second = ReplicaInTest(shared, "second", problem_of=problem_of)
    await started(first, second)
    for name, owner in (("a", ALICE), ("b", BOB)):
        first.open(name, owner=owner)
        first.begins(name)
    first.die()
    await settle()
    assert [each.id for each in second.engine.submitted] == ["b"]
    end = second.streams.find("a", ALICE).ended
    assert isinstance(end, Failure)
    assert end.code == "revoked_api_key"


@pytest.mark.parametrize("resumable", [True, False])
async def test_a_server_that_stops_ends_answers_that_cannot_continue_before_it_leaves(
    resumable: bool,
) -> None:
    shared = Shared()
    first, second = (ReplicaInTest(shared, name) for name in ("first", "second"))
    await started(first, second)
    free = first.open("free")
    bound = first.open("bound", json_schema="{}", resumable=resumable)
    readers = [Reader(free), Reader(bound)]
    for name in ("free", "bound"):
        first.begins(name)
        first.generates(name, "{")
    drain = asyncio.ensure_future(first.streams.drain(30))
    await settle()
    first.generates("bound", "}")
    first.finishes("bound", 2)
    await settle()
    assert text_of(bound.log.after(0)) == "{}"
    assert isinstance(bound.ended, Finish)
    assert [each.id for each in second.engine.submitted] == ["free"]
    for reader in readers:
        reader.close()
    await settle()
    assert drain.done()


async def test_a_request_that_creeps_on_and_kills_each_server_is_given_up() -> None:
    shared = Shared()
    owner = ReplicaInTest(shared, "0")
    await started(owner)
    Reader(owner.open("killer"))
    for number in range(1, 20):
        owner.begins("killer")
        owner.generates("killer", "x")
        successor = ReplicaInTest(shared, str(number))
        await started(successor)
        owner.die()
        await settle()
        owner = successor
        if (end := owner.streams.find("killer").ended) is not None:
            break
    assert isinstance(end, Failure)
    assert (end.code, end.retry_safe) == ("replica_lost", False)
    assert number == 6


async def test_a_long_answer_outlives_any_number_of_servers() -> None:
    shared = Shared()
    owner = ReplicaInTest(shared, "0")
    await started(owner)
    Reader(owner.open("long", max_tokens=100_000))
    for number in range(1, 20):
        owner.begins("long")
        owner.generates("long", *"x" * 256)
        successor = ReplicaInTest(shared, str(number))
        await started(successor)
        owner.die()
        await settle()
        owner = successor
    assert owner.streams.find("long").ended is None


async def test_logs_that_this_server_cannot_continue_are_read_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = Shared()
    first, second = ReplicaInTest(shared, "first"), ReplicaInTest(shared, "second", model="other")
    await started(first, second)
    for name in ("readable", "newer"):
        first.open(name)
    shared.logs["newer"].header = b"\x81\xa7version\x63"
    first.die()
    await settle()
    for _ in range(5):
        shared.tell_orphans()
        await settle()
    said = [record.getMessage() for record in caplog.records]
    assert sum("another model wait" in each for each in said) == 1
    assert sum("has format 99" in each for each in said) == 1
    assert [shared.logs[name].epoch for name in ("readable", "newer")] == [1, 1]
    assert second.fleet.num_followed == 0


async def test_a_client_may_be_ahead_of_the_copy_that_others_read() -> None:
    shared = Shared()
    first, second = (ReplicaInTest(shared, name) for name in ("first", "second"))
    await started(first, second)
    stream = first.open("a")
    first.begins("a")
    copy = await second.streams.find_anywhere("a")
    reader = Reader(copy)
    (following,) = shared.logs["a"].followings
    shared.logs["a"].followings.clear()  # the copy is read again later
    first.generates("a", "one ", "two ")
    await settle()
    assert len(copy.log) == 0
    finding = asyncio.ensure_future(second.streams.find_anywhere("a", afresh=True))
    await settle()
    assert not finding.done()
    shared.logs["a"].followings.append(following)
    following.read()
    assert len((await finding).log) == len(stream.log) == 2
    assert await finding is copy
    assert len(shared.logs["a"].followings) == 1
    reader.close()
