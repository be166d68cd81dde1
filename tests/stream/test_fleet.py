"""Several replicas over one store: nothing is shown before it is stored, and nothing is lost."""

import asyncio

import pytest

from penstock.engine.protocol import Addition
from penstock.events import Failure, Finish
from penstock.stream.reader import Reader
from penstock.stream.stream import Stream
from tests.support.problems import raises_problem
from tests.support.replicas import ReplicaInTest, started, text_of
from tests.support.scripted import settle
from tests.support.shared_store import Shared


async def two(slots: int = 0, linger: float = 60) -> tuple[ReplicaInTest, ReplicaInTest]:
    shared = Shared()
    first, second = (
        ReplicaInTest(shared, name, slots=slots, linger=linger) for name in ("first", "second")
    )
    await started(first, second)
    return first, second


def shown(stream: Stream) -> str:
    return text_of(stream.log.after(0))


def has_ended(stream: Stream) -> bool:
    return stream.ended is not None


async def test_nothing_is_shown_before_it_is_stored() -> None:
    first, _ = await two()
    stream = first.open("a")
    first.begins("a")
    first.generates("a", "one ")
    first.store.hold()
    first.generates("a", "two ")
    stream.cancel()
    assert shown(stream) == "one "
    assert not has_ended(stream)
    first.store.confirm()
    assert shown(stream) == "one two "
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "cancelled"


async def test_another_replica_shows_the_same_events_live_and_afterwards() -> None:
    first, second = await two()
    stream = first.open("a", stop=("END",))
    first.begins("a")
    first.generates("a", "one ", "E", "N")
    copy = await second.streams.find_anywhere("a")
    reader = Reader(copy)
    assert copy.log.after(0) == stream.log.after(0)
    first.generates("a", "x ", "two")
    first.finishes("a", 5)
    await settle()
    assert copy.log.after(0) == stream.log.after(0)
    assert shown(copy) == "one ENx two"
    assert copy.ended == stream.ended
    reader.close()
    assert second.fleet.num_followed == 0
    again = await second.streams.find_anywhere("a")
    assert again.log.after(0) == stream.log.after(0)
    await settle()
    assert second.fleet.num_followed == 0


async def test_a_dead_replica_s_stream_continues_from_its_tokens() -> None:
    first, second = await two()
    first.open("a", stop=("END",))
    first.begins("a")
    first.generates("a", "one ", "E", "N")
    first.die()
    await settle()
    request = second.last_request
    assert (request.prompt_ids, request.max_tokens) == ((1, 2, 3), 97)
    assert request.generated == tuple(map(ord, "oEN"))
    second.begins("a")
    second.generates("a", "D and more")
    stream = second.streams.find("a")
    assert shown(stream) == "one "
    assert isinstance(stream.ended, Finish)
    assert (stream.ended.reason, stream.ended.stop_string) == ("stop", "END")
    assert stream.ended.usage.completion_tokens == 4


async def test_what_was_written_and_not_confirmed_is_not_lost_and_not_repeated() -> None:
    first, second = await two()
    stream = first.open("a")
    first.begins("a")
    first.store.hold()
    first.generates("a", "one ", "two ")
    first.die()
    await settle()
    assert shown(stream) == ""
    assert second.last_request.generated == tuple(map(ord, "ot"))
    assert shown(second.streams.find("a")) == "one two "


async def test_a_stream_that_waits_continues_from_its_prompt() -> None:
    first, second = await two(slots=1)
    first.open("a")
    first.open("b")
    first.die()
    await settle()
    assert [each.id for each in second.engine.submitted] == ["a"] or [
        each.id for each in second.engine.submitted
    ] == ["b"]
    assert second.last_request.prompt == "x"
    assert second.streams.admission.num_waiting == 1


async def test_streams_that_are_taken_over_go_before_those_that_wait() -> None:
    first, second = await two(slots=1)
    running = second.open("mine")
    second.open("waits")
    second.begins("mine")
    first.open("a")
    first.begins("a")
    first.generates("a", "one ")
    first.die()
    await settle()
    assert [each.id for each in second.engine.submitted] == ["mine"]
    running.cancel()
    await settle()
    assert [each.id for each in second.engine.submitted] == ["mine", "a"]


async def test_of_two_survivors_one_gets_the_stream() -> None:
    shared = Shared()
    replicas = [ReplicaInTest(shared, name) for name in ("first", "second", "third")]
    first, second, third = replicas
    await started(*replicas)
    for name in "abcdef":
        first.open(name)
        first.begins(name)
    first.die()
    await settle()
    taken = [*second.engine.submitted, *third.engine.submitted]
    assert sorted(each.id for each in taken) == list("abcdef")
    assert second.fleet.num_followed == third.fleet.num_followed == 0


async def test_a_fenced_owner_shows_what_the_new_owner_generates() -> None:
    first, second = await two()
    stream = first.open("a")
    reader = Reader(stream)
    first.begins("a")
    first.generates("a", "one ")
    first.die()
    await settle()
    first.store.confirm()
    second.begins("a")
    second.generates("a", "two ")
    first.generates("a", "wrong ")  # its store refuses this
    await settle()
    assert shown(stream) == "one two "
    assert first.engine.cancelled == ["a"]
    assert len(first.streams) == 0
    second.generates("a", "three")
    second.finishes("a", 2)
    await settle()
    assert shown(stream) == "one two three"
    assert stream.ended == second.streams.find("a").ended
    reader.close()
    assert first.fleet.num_followed == 0


async def test_an_owner_that_was_fenced_and_does_not_know_shows_the_new_owner_s_end() -> None:
    first, second = await two()
    stream = first.open("a")
    first.begins("a")
    first.generates("a", "one ")
    assert await second.streams.cancel_anywhere("a") == "cancelled"
    assert await first.streams.find_anywhere("a") is stream
    assert stream.ended is None, "the first one has not noticed yet"
    found = await first.streams.find_anywhere("a", afresh=True)
    assert isinstance(found.ended, Finish)
    assert found.ended.reason == "cancelled"
    assert first.engine.cancelled == ["a"]


async def test_a_reader_at_the_survivor_keeps_its_place() -> None:
    first, second = await two()
    first.open("a")
    first.begins("a")
    first.generates("a", "one ")
    copy = await second.streams.find_anywhere("a")
    reader = Reader(copy)
    first.die()
    await settle()
    second.begins("a")
    second.generates("a", "two ")
    assert second.streams.find("a") is copy
    assert shown(copy) == "one two "
    reader.close()


async def test_a_cancel_elsewhere_takes_the_stream_and_ends_it() -> None:
    first, second = await two()
    stream = first.open("a")
    reader = Reader(stream)
    first.begins("a")
    first.generates("a", "one ")
    assert await second.streams.cancel_anywhere("a") == "cancelled"
    first.generates("a", "wrong ")
    await settle()
    assert shown(stream) == "one "
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "cancelled"
    assert first.engine.cancelled == ["a"]
    assert await second.streams.cancel_anywhere("a") == "cancelled"
    reader.close()
    with raises_problem("stream_not_found"):
        await second.streams.cancel_anywhere("b")


async def test_a_request_that_loses_two_replicas_before_its_first_token_is_given_up() -> None:
    shared = Shared()
    replicas = [ReplicaInTest(shared, name) for name in ("first", "second", "third")]
    await started(*replicas)
    stream = replicas[0].open("killer")
    Reader(stream)
    alive = list(replicas)
    for _ in range(2):
        (owner,) = [each for each in alive if "killer" in each.stored]
        owner.begins("killer")
        alive.remove(owner)
        owner.die()
        await settle()
    (last,) = alive
    end = last.streams.find("killer").ended
    assert isinstance(end, Failure)
    assert (end.code, end.retry_safe) == ("replica_lost", False)
    assert last.engine.submitted == []


async def test_streams_that_are_handed_over_go_on_and_are_shown_to_their_readers() -> None:
    first, second = await two()
    names = ("stored", "unstored")
    streams = [first.open("stored"), first.open("unstored", resumable=False)]
    assert "unstored" not in first.stored
    readers = [Reader(stream) for stream in streams]
    for name in names:
        first.begins(name)
        first.generates(name, "one ")
    drain = asyncio.ensure_future(first.streams.drain(30))
    await settle()
    assert sorted(first.engine.cancelled) == sorted(names)
    for name in names:
        second.begins(name)
        second.generates(name, "two ")
        second.finishes(name, 1)
    await settle()
    assert sorted(each.id for each in second.engine.submitted) == [*names]
    assert [shown(stream) for stream in streams] == ["one two "] * 2
    assert not drain.done()
    for reader in readers:
        reader.close()
    await settle()
    assert drain.done()


async def test_without_another_replica_streams_are_drained_and_the_rest_waits_in_the_store() -> (
    None
):
    shared = Shared()
    first = ReplicaInTest(shared, "first")
    await started(first)
    stream = first.open("a")
    reader = Reader(stream)
    first.begins("a")
    first.generates("a", "one ")
    await first.streams.drain(0.01)
    assert stream.ended is None
    assert reader.is_cut
    await first.store.stop()
    second = ReplicaInTest(shared, "second")
    await started(second)
    assert second.last_request.generated == (ord("o"),)


async def test_of_replicas_that_all_drain_one_goes_on_with_the_streams_of_another_that_dies() -> (
    None
):
    shared = Shared()
    first, second = (ReplicaInTest(shared, name, group="group") for name in ("first", "second"))
    await started(first, second)
    first.open("a")
    first.begins("a")
    first.generates("a", "one ")
    second.open("b")
    second.begins("b")
    drains = [asyncio.ensure_future(each.streams.drain(30)) for each in (first, second)]
    await settle()
    first.die()
    await settle()
    second.finishes("b", 0)
    second.begins("a")
    second.generates("a", "two ")
    await settle()
    assert not drains[1].done()
    assert shown(second.streams.find("a")) == "one two "
    second.finishes("a", 1)
    await settle()
    assert drains[1].done()
    drains[0].cancel()


async def test_a_server_that_has_ended_its_streams_takes_no_others() -> None:
    first, second = await two()
    first.open("a")
    first.begins("a")
    second.streams.shut_down()
    first.die()
    await settle()
    assert second.engine.submitted == []


async def test_an_unreachable_store_cuts_readers_and_shows_no_end() -> None:
    first, second = await two()
    stream = first.open("a")
    reader = Reader(stream)
    first.begins("a")
    first.generates("a", "one ")
    first.store.problem = "It does not answer."
    first.fleet.logs_unreachable()
    assert reader.is_cut
    assert first.engine.cancelled == ["a"]
    with raises_problem("store_unavailable"):
        first.open("b")
    first.die()
    await settle()
    assert second.last_request.generated == (ord("o"),)


async def test_an_engine_s_death_is_told_after_what_it_generated() -> None:
    first, _ = await two()
    stream = first.open("a")
    first.begins("a")
    first.store.hold()
    first.generates("a", "one ", "two ")
    first.engine.die()
    first.store.confirm()
    first.engine.come_back()
    await settle()
    assert first.last_request.generated == tuple(map(ord, "ot"))
    assert shown(stream) == "one two "


async def test_a_stream_nobody_reads_goes_on_while_it_is_read_elsewhere() -> None:
    first, second = await two(linger=0)
    stream = first.open("a")
    mine = Reader(stream)
    first.begins("a")
    copy = await second.streams.find_anywhere("a")
    theirs = Reader(copy)
    mine.close()
    await asyncio.sleep(0.02)
    assert stream.ended is None
    theirs.close()
    await stream.end()
    assert stream.client_gone


async def test_streams_of_another_model_are_left_alone() -> None:
    shared = Shared()
    first = ReplicaInTest(shared, "first")
    second = ReplicaInTest(shared, "second", model="other")
    await started(first, second)
    first.open("a")
    first.die()
    await settle()
    assert second.engine.submitted == []
    assert second.fleet.num_followed == 0


async def test_a_stream_goes_on_where_its_own_model_is_served_whichever_is_the_first_there() -> (
    None
):
    shared = Shared()
    first = ReplicaInTest(shared, "first", model="small/0", other_models={"large": "large/0"})
    second = ReplicaInTest(shared, "second", model="large/0", other_models={"large": "large/0"})
    await started(first, second)
    first.open("a", model="large")
    first.open("b")
    for name in ("a", "b"):
        first.begins(name)
        first.generates(name, "one ")
    first.die()
    await settle()
    assert [(each.id, each.model) for each in second.engine.submitted] == [("a", "large")]


@pytest.mark.parametrize("num_confirmed", range(4))
async def test_a_bound_answer_is_never_contradicted(num_confirmed: int) -> None:
    first, second = await two()
    stream = first.open("a", json_schema="{}")
    reader = Reader(stream)
    first.begins("a")
    for piece in ("{", '"a"', ":1")[:num_confirmed]:
        first.says(Addition("a", piece, 1, (7,)))
    first.die()
    await settle()
    end = second.streams.find("a").ended
    if num_confirmed:
        assert isinstance(end, Failure)
        assert (end.code, end.retry_safe) == ("replica_lost", True)
    else:
        assert end is None
        assert second.last_request.json_schema == "{}"
    reader.close()


async def test_cancels_at_once_at_every_replica_agree() -> None:
    shared = Shared()
    replicas = [ReplicaInTest(shared, name) for name in ("first", "second", "third")]
    await started(*replicas)
    stream = replicas[0].open("a")
    reader = Reader(stream)
    replicas[0].begins("a")
    replicas[0].generates("a", "one ")
    async with asyncio.timeout(20):
        reasons = await asyncio.gather(
            *(each.streams.cancel_anywhere("a") for each in replicas * 3),
            *(each.streams.find_anywhere("a") for each in replicas),
        )
        await stream.end()
    assert reasons[:9] == ["cancelled"] * 9
    reader.close()
    await settle()
    assert shared.logs["a"].followings == []
    assert [each.fleet.num_followed for each in replicas] == [0] * 3


async def test_a_cancel_tells_of_the_end_that_was_on_its_way_to_the_store() -> None:
    first, _ = await two()
    stream = first.open("a")
    first.begins("a")
    first.store.hold()
    first.generates("a", "one ")
    first.finishes("a", 1)
    cancel = asyncio.ensure_future(first.streams.cancel_anywhere("a"))
    await settle()
    first.store.confirm()
    assert await cancel == "stop"
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "stop"


async def test_a_cancel_follows_the_stream_to_its_new_owner() -> None:
    first, second = await two()
    first.open("a")
    first.begins("a")
    first.store.hold()
    first.generates("a", "one ")
    cancel = asyncio.ensure_future(first.streams.cancel_anywhere("a"))
    await settle()
    del first.store.shared.entries_of("a")[-1:]  # the decision does not reach the store
    second.fleet.logs_orphaned([("a", 1)])  # the first one's lease has lapsed, and it lives
    await settle()
    first.generates("a", "wrong ")  # its store refuses this
    first.store.confirm()
    async with asyncio.timeout(20):
        assert await cancel == "cancelled"
    second.generates("a", "wrong ")
    await settle()
    stream = await second.streams.find_anywhere("a")
    assert isinstance(stream.ended, Finish)
    assert stream.ended.reason == "cancelled"
    assert shown(stream) == "one "
