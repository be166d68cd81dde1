"""A store may lose the end of a log between two of its lives: then a claim says so (`TORN`)."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from penstock.store.protocol import CLAIMED, TORN, StoredLog
from penstock.store.redis.layout import LEASES, LIVES, OPEN, REPLICAS
from penstock.store.redis.scripts import SURVEY
from tests.faults.proxy import Proxy
from tests.store.servers import RedisServer
from tests.store.stores import (
    LONG_S,
    PATIENCE_S,
    PLACES,
    RedisPlace,
    Replica,
    ReplicaProcess,
    Replicas,
    SqlitePlace,
    files_of,
)
from tests.store.stores import replicas_of as open_replicas


@pytest.fixture(params=PLACES)
async def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with open_replicas(request.param, tmp_path) as opened:
        yield opened


async def claimed(replica: Replica, stream_id: str, epoch: int) -> StoredLog:
    log = await replica.claim(stream_id, epoch)
    assert log is not None
    return log


async def test_a_log_of_an_earlier_life_is_torn_where_it_is_claimed(replicas: Replicas) -> None:
    owner = await replicas.new_process()
    await owner.ask("open", "s", "ended")
    await owner.ask("append", "s", "1", "2")
    await owner.ask("end", "ended", "end")
    await owner.kill()
    await replicas.place.begin_life()
    second = await replicas.new()
    log = await claimed(second, "s", 1)
    await second.stored(log, b"3")
    await second.stop()
    third = await replicas.new()
    log = await claimed(third, "s", 2)  # in the life in which the second one wrote
    await third.stored(log, b"4")
    assert await third.claim("ended", 1) is None
    assert await third.all_of("s") == [b"1", b"2", TORN, b"3", CLAIMED, b"4"]
    assert await third.all_of("ended") == [b"end"]


async def test_each_life_tears_the_logs_that_are_claimed_after_it(replicas: Replicas) -> None:
    ids = [f"s{number}" for number in range(3)]
    owner = await replicas.new_process()
    await owner.ask("open", *ids)
    await owner.kill()
    for epoch in (1, 2):
        await replicas.place.begin_life()
        owner = await replicas.new_process()
        assert await owner.ask("claim", epoch, *ids) == [True] * len(ids)
        await owner.kill()
    replica = await replicas.new()
    for each in ids:
        assert await replica.all_of(each) == [TORN, TORN]


# A folder.


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Replicas]:
    async with open_replicas("sqlite", tmp_path) as opened:
        yield opened


async def left_log(folder: Replicas) -> None:
    """Leave a log of a dead replica."""
    owner = Replica(folder.place.new_store(PATIENCE_S))
    await owner.start()
    await owner.stored(owner.store.open("s", b"h"), b"1")
    await owner.stop()


@pytest.mark.parametrize(("synchronous", "entry"), [("FULL", CLAIMED), ("NORMAL", TORN)])
async def test_a_folder_whose_writes_wait_for_the_disk_has_one_life(
    folder: Replicas, synchronous: str, entry: bytes
) -> None:
    assert isinstance(folder.place, SqlitePlace)
    folder.place.synchronous = synchronous
    await left_log(folder)
    await folder.place.begin_life()
    second = await folder.new()
    await claimed(second, "s", 1)
    assert await second.all_of("s") == [b"1", entry]


async def test_a_claim_whose_next_part_was_lost_is_torn_also_in_a_synced_file(
    folder: Replicas,
) -> None:
    """The claimant did not wait for the disk: its part of the log is gone with its file."""
    assert isinstance(folder.place, SqlitePlace)
    folder.place.synchronous = "FULL"
    await left_log(folder)
    (first,) = files_of(folder.place.spec)
    folder.place.synchronous = "NORMAL"
    claimant = await folder.new_process()
    assert await claimant.ask("claim", 1, "s") == [True]
    await claimant.ask("append", "s", "lost")
    await claimant.kill()
    await folder.place.begin_life()
    (second,) = {*files_of(folder.place.spec)} - {first}
    second.unlink()
    third = await folder.new()
    await claimed(third, "s", 1)
    assert await third.all_of("s") == [b"1", TORN]


async def test_the_logs_of_an_earlier_version_count_as_whole(folder: Replicas) -> None:
    await left_log(folder)
    (path,) = files_of(folder.place.spec)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE life")
    second = await folder.new()
    await claimed(second, "s", 1)
    assert await second.all_of("s") == [b"1", CLAIMED]


# Redis, whose replicas outlive a life.


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Replicas]:
    async with open_replicas("redis", tmp_path) as opened:
        yield opened


async def test_an_owner_that_is_alive_carries_its_logs_into_the_next_life(redis: Replicas) -> None:
    a = await redis.new()
    log = a.store.open("s", b"h")
    await a.stored(log, b"1")
    await redis.place.begin_life()
    await a.stored(log, b"2")
    await a.stored(log, b"3")  # the mark was sent before
    b = await redis.new()
    await claimed(b, "s", 1)
    assert await b.all_of("s") == [b"1", b"2", b"3", CLAIMED]
    await a.stop()
    await b.stop()


class FailedOver:
    """A Redis whose replica took its place, and lacks what was written last, behind a proxy."""

    def __init__(self, folder: Path) -> None:
        self.primary = RedisServer(folder)
        self.primary.start()
        self.second = RedisServer(folder, options={"replicaof": f"127.0.0.1 {self.primary.port}"})
        self.second.start()

    async def part(self) -> None:
        """Let the second server have all there is, and nothing that comes."""
        async with Redis(port=self.primary.port) as primary:
            await primary.set("mark", 1)
            assert await primary.wait(1, int(LONG_S) * 1000) == 1
        async with Redis(port=self.second.port, protocol=2) as second:
            await second.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]

    def take_place(self, proxy: Proxy) -> None:
        """Let the second server be the one at the address."""
        proxy.target = self.second.address
        self.primary.kill()

    def close(self) -> None:
        self.primary.kill()
        self.second.kill()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[FailedOver, Proxy, Replicas]]:
    servers = FailedOver(tmp_path)
    async with Proxy(servers.primary.address) as proxy:
        replicas = Replicas(RedisPlace.from_spec(f"redis://127.0.0.1:{proxy.address[1]}/0"))
        try:
            yield servers, proxy, replicas
        finally:
            await replicas.close()
            servers.close()


async def owner_dies_in_a_failover(
    pair: tuple[FailedOver, Proxy, Replicas], follower: Replica, owner: ReplicaProcess
) -> None:
    """Lose the last two entries of the owner's log, which the follower has read."""
    servers, proxy, _ = pair
    await owner.ask("open", "s")
    await owner.ask("append", "s", "1", "2")
    await servers.part()
    await owner.ask("append", "s", "3", "4")
    reading = await follower.reading("s")
    assert reading.entries == [b"1", b"2", b"3", b"4"]
    reading.followed.close()
    await owner.kill()
    servers.take_place(proxy)


async def test_a_follower_that_is_ahead_of_a_torn_log_gets_nothing_of_it(
    pair: tuple[FailedOver, Proxy, Replicas],
) -> None:
    servers, proxy, replicas = pair
    follower, owner = await replicas.new(), await replicas.new_process()
    await owner.ask("open", "s", "behind")
    await owner.ask("append", "s", "1", "2")
    behind = await follower.reading("behind")
    await servers.part()
    await owner.ask("append", "s", "3", "4")
    ahead = await follower.reading("s")
    await owner.kill()
    servers.take_place(proxy)
    taker = await replicas.new()
    for stream_id in ("s", "behind"):
        await taker.stored(await claimed(taker, stream_id, 1), b"other")
    await ahead.until(lambda: ahead.is_ahead)
    await behind.until_it_has(2)
    assert ahead.entries == [b"1", b"2", b"3", b"4"]
    assert behind.entries == [TORN, b"other"]
    assert not behind.is_ahead
    assert await follower.all_of("s") == [b"1", b"2", TORN, b"other"]


async def test_whoever_has_read_more_than_a_torn_log_has_is_told_when_it_reads_on(
    pair: tuple[FailedOver, Proxy, Replicas],
) -> None:
    follower, owner = await pair[2].new(), await pair[2].new_process()
    await owner_dies_in_a_failover(pair, follower, owner)
    early = await follower.reading("s", after=4, epoch=1)
    assert not early.is_ahead  # nobody has claimed it yet
    log = await claimed(follower, "s", 1)
    await follower.stored(log, b"x", b"y", b"z")
    await early.until(lambda: early.is_ahead)
    for after, epoch, entries in ((2, 1, [TORN, b"x", b"y", b"z"]), (4, 2, [b"y", b"z"])):
        late = await follower.reading("s", after, epoch)
        assert (late.entries, late.is_ahead) == (entries, False)
    ahead = await follower.reading("s", after=4, epoch=1)
    assert (ahead.entries, ahead.is_ahead) == ([], True)
    assert early.entries == []


async def test_an_owner_writes_what_a_failover_has_lost_and_its_log_is_whole(
    pair: tuple[FailedOver, Proxy, Replicas],
) -> None:
    servers, proxy, replicas = pair
    owner = await replicas.new()
    log = owner.store.open("s", b"h")
    await owner.stored(log, b"1")
    await servers.part()
    await owner.stored(log, b"2")
    servers.take_place(proxy)
    await owner.stored(log, b"3")
    await owner.stored(log, b"4")  # the mark was sent before
    taker = await replicas.new()
    await claimed(taker, "s", 1)
    assert await taker.all_of("s") == [b"1", b"2", b"3", b"4", CLAIMED]


async def test_an_owner_writes_what_a_failover_has_lost_of_the_log_before_its_claim(
    pair: tuple[FailedOver, Proxy, Replicas],
) -> None:
    servers, proxy, replicas = pair
    follower, taker, owner = (
        await replicas.new(),
        await replicas.new(),
        await replicas.new_process(),
    )
    await owner.ask("open", "s")
    await owner.ask("append", "s", "1", "2")
    await servers.part()
    await owner.ask("append", "s", "3", "4")
    reading = await follower.reading("s")
    await owner.kill()
    log = await claimed(taker, "s", 1)
    await taker.stored(log, b"5")
    servers.take_place(proxy)
    await taker.stored(log, b"6")
    whole = [b"1", b"2", b"3", b"4", CLAIMED, b"5", b"6"]
    await reading.until_it_has(len(whole))
    assert reading.entries == whole
    assert await follower.all_of("s") == whole
    await taker.ended(log, b"end")
    assert await follower.all_of("s") == [*whole, b"end"]
    assert taker.reports.lost == []


async def test_a_replica_that_was_taken_for_dead_opens_logs_that_are_whole(redis: Replicas) -> None:
    assert isinstance(redis.place, RedisPlace)
    a, b = await redis.new(), await redis.new()
    async with Redis.from_url(redis.place.spec, decode_responses=True) as client:
        names = [str(name) for name in await client.smembers(REPLICAS)]
        (tenure,) = [name for name in names if name.startswith(a.store.replica)]
        # In one step: if `a` renewed its lease in between, it would begin another tenure.
        step = client.pipeline(transaction=True)
        step.delete(LEASES + tenure)
        step.eval(SURVEY.text, 2, REPLICAS, LIVES, LEASES, OPEN)
        await step.execute()
        assert not await client.sismember(REPLICAS, tenure)
    await a.stored(a.store.open("s", b"h"))  # its next renewal would have told it
    await claimed(b, "s", 1)
    assert await b.all_of("s") == [CLAIMED]
    await a.stop()


async def test_the_lives_of_replicas_that_are_gone_are_forgotten(redis: Replicas) -> None:
    assert isinstance(redis.place, RedisPlace)
    first = await redis.new()
    await first.stored(first.store.open("s", b"h"))
    async with Redis.from_url(redis.place.spec) as client:
        assert await client.hlen(LIVES) == 1
        await first.stop()
        second = await redis.new()
        await second.ended(await claimed(second, "s", 1), b"end")
        async with asyncio.timeout(LONG_S):
            while await client.hlen(LIVES) != 1:  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.02)
        assert b"" not in (await client.hgetall(LIVES)).values()
