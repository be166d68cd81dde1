"""A store has lost the end of a stream's log together with its owner: nothing contradicts that."""

from penstock.events import Failure, Finish
from penstock.stream.reader import Reader
from penstock.stream.stream import Stream
from tests.support.replicas import ReplicaInTest, started, text_of
from tests.support.scripted import settle
from tests.support.shared_store import Shared


async def replicas(*names: str) -> tuple[Shared, list[ReplicaInTest]]:
    shared = Shared()
    made = [ReplicaInTest(shared, name) for name in names]
    await started(*made)
    return shared, made


def says(owner: ReplicaInTest, text: str) -> None:
    owner.generates("a", *text)


def shown(stream: Stream) -> str:
    return text_of(stream.log.after(0))


def begun(owner: ReplicaInTest, text: str) -> Stream:
    """Open the stream `a`, which has this text already."""
    stream = owner.open("a")
    owner.begins("a")
    says(owner, text)
    return stream


async def taker_of(made: list[ReplicaInTest]) -> ReplicaInTest:
    await settle()
    (taker,) = [each for each in made if "a" in each.stored]
    taker.begins("a")
    return taker


async def test_what_follows_in_a_torn_log_is_told_from_what_was_there_before() -> None:
    shared, (first, second, third) = await replicas("first", "second", "third")
    begun(first, "abcdef")
    shared.lose("a", 3)
    first.die()
    taker = await taker_of([second, third])
    says(taker, "uvw")
    copies = [await each.streams.find_anywhere("a") for each in (second, third)]
    assert [(shown(copy), copy.torn_at) for copy in copies] == [("abcuvw", 3)] * 2
    # Another loss further on makes nothing certain again.
    readers = [Reader(copy) for copy in copies]
    says(taker, "xyz")
    await settle()
    shared.lose("a", 1)
    taker.die()
    last = await taker_of([each for each in (second, third) if each is not taker])
    says(last, "!")
    late = await last.streams.find_anywhere("a")
    assert (shown(late), late.torn_at) == ("abcuvwxy!", 3)
    for reader in readers:
        reader.close()


async def test_an_owner_s_death_alone_leaves_everything_certain() -> None:
    _, (first, second) = await replicas("first", "second")
    begun(first, "abc")
    first.die()
    taker = await taker_of([second])
    assert taker.streams.find("a").torn_at is None


async def test_readers_of_a_replica_that_shows_more_than_the_log_has_are_cut() -> None:
    """Whichever replica takes the stream over: the one that shows too much, or another one."""
    for num_others in (0, 1):
        names = ("first", "follower", "other")[: 2 + num_others]
        shared, (first, follower, *others) = await replicas(*names)
        begun(first, "abcdef")
        copy = await follower.streams.find_anywhere("a")
        reader = Reader(copy)
        if others:
            follower.streams.is_handing_over = True  # so it claims nothing
        shared.lose("a", 2)
        first.die()
        taker = await taker_of([follower, *others])
        says(taker, "xyz")
        await settle()
        assert reader.is_cut
        assert shown(copy) == "abcdef"
        assert isinstance(copy.ended, Failure)  # for those who wait for the whole answer
        assert (copy.ended.code, copy.ended.retry_safe) == ("replica_lost", True)
        for each in (follower, taker):
            fresh = await each.streams.find_anywhere("a")
            assert (shown(fresh), fresh.torn_at) == ("abcdxyz", 4)
        reader.close()


async def test_a_reader_that_is_not_ahead_reads_on() -> None:
    shared, (first, follower, other) = await replicas("first", "follower", "other")
    begun(first, "abc")
    await settle()
    first.store.hold()
    says(first, "d")  # nobody has read it yet
    shared.lose("a", 1)
    follower.streams.is_handing_over = True
    copy = await follower.streams.find_anywhere("a")
    reader = Reader(copy)
    first.die()
    taker = await taker_of([follower, other])
    says(taker, "xyz")
    await settle()
    assert (shown(copy), copy.torn_at, reader.is_cut) == ("abcxyz", 3, False)
    reader.close()


async def test_an_owner_that_lost_a_torn_log_shows_nothing_of_its_new_owner() -> None:
    shared, (first, second) = await replicas("first", "second")
    stream = begun(first, "abcdef")
    reader = Reader(stream)
    shared.lose("a", 3)
    second.fleet.logs_orphaned([("a", 1)])  # its lease has lapsed, and it does not know it yet
    taker = await taker_of([second])
    says(taker, "vwxyz")
    says(first, "g")  # it is told that the log has another owner
    await settle()
    assert reader.is_cut
    assert shown(stream) == "abcdef"
    fresh = await first.streams.find_anywhere("a")
    assert (shown(fresh), fresh.torn_at) == ("abcvwxyz", 3)
    reader.close()


async def test_a_stream_is_cancelled_at_a_replica_that_shows_more_than_the_log_has() -> None:
    shared, (first, second) = await replicas("first", "second")
    begun(first, "abcdef")
    copy = await second.streams.find_anywhere("a")
    reader = Reader(copy)
    shared.lose("a", 3)
    second.streams.is_handing_over = True  # so it claims nothing by itself
    first.die()
    await settle()
    assert await second.streams.cancel_anywhere("a") == "cancelled"
    late = await second.streams.find_anywhere("a")
    assert shown(late) == "abc"
    assert isinstance(late.ended, Finish)
    assert late.ended.reason == "cancelled"
    reader.close()


async def test_a_copy_that_has_ended_is_no_place_to_go_on_from() -> None:
    shared, (first, second) = await replicas("first", "second")
    begun(first, "abc")
    copy = await second.streams.find_anywhere("a")
    reader = Reader(copy)  # it does not read on, so the copy stays
    first.finishes("a", 3)
    await settle()
    assert isinstance(copy.ended, Finish)
    shared.lose("a", 3)
    first.die()
    taker = await taker_of([second])
    says(taker, "xyz")
    fresh = taker.streams.find("a")
    assert (shown(fresh), fresh.torn_at, fresh.ended) == ("abxyz", 2, None)
    reader.close()
