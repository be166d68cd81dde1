"""Streams change their servers in groups, and only go where they can continue."""

import asyncio

import pytest

from penstock.events import Finish
from penstock.store.protocol import MAX_GROUP
from penstock.stream.reader import Reader
from tests.support.replicas import MODEL, ReplicaInTest, started, text_of
from tests.support.scripted import settle
from tests.support.shared_store import Shared


async def owner_of(num: int) -> tuple[ReplicaInTest, ReplicaInTest]:
    """Return two replicas; the first has opened so many streams."""
    shared = Shared()
    first, second = (ReplicaInTest(shared, name) for name in ("first", "second"))
    await started(first, second)
    for number in range(num):
        first.open(f"s{number}")
        first.begins(f"s{number}")
        first.generates(f"s{number}", "one ")
    return first, second


async def test_many_streams_are_taken_over_with_few_calls_of_the_store() -> None:
    num = 3 * MAX_GROUP
    first, second = await owner_of(num)
    second.store.calls.clear()
    first.die()
    while len(second.engine.submitted) < num:
        await settle()
    assert (second.store.calls["claim"], second.store.calls["follow"]) == (3, 3)
    assert {request.max_tokens for request in second.engine.submitted} == {99}


async def test_streams_that_clients_read_here_are_taken_over_first() -> None:
    first, second = await owner_of(3 * MAX_GROUP)
    reader = Reader(await second.streams.find_anywhere("s190"))
    first.die()
    await settle()
    assert "s190" in [each.id for each in second.engine.submitted[:MAX_GROUP]]
    reader.close()


async def test_many_clients_that_ask_at_once_are_few_reads_of_the_store() -> None:
    _, second = await owner_of(100)
    second.store.calls.clear()
    asked = [second.streams.find_anywhere(f"s{number % 100}") for number in range(300)]
    streams = await asyncio.gather(*asked)
    assert second.store.calls["follow"] == 2
    assert {text_of(stream.log.after(0)) for stream in streams} == {"one "}
    await settle()
    assert second.fleet.num_followed == 0


@pytest.mark.parametrize("heir", ["of another model", "of the same group"])
async def test_streams_are_not_handed_over_to_a_replica_that_cannot_continue_them(
    heir: str,
) -> None:
    shared = Shared()
    group = "group" if heir == "of the same group" else ""
    first = ReplicaInTest(shared, "first", group=group)
    model = "another" if heir == "of another model" else MODEL
    second = ReplicaInTest(shared, "second", model=model, group=group)
    await started(first, second)
    stream = first.open("a")
    Reader(stream)
    first.begins("a")
    drain = asyncio.ensure_future(first.streams.drain(30))
    await settle()
    first.generates("a", "one ")
    first.finishes("a", 1)
    await settle()
    assert isinstance(stream.ended, Finish)
    assert drain.done()
    assert "a" not in [each.id for each in second.engine.submitted]
