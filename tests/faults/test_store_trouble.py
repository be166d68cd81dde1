"""The store of logs fails under running servers: streams pause or are cut, and then go on.

Nothing is shown twice or contradicted; requests that are not resumable do not notice.
"""

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.checker import judge
from tests.faults.client_request import fetch, request_bytes
from tests.faults.processes import until_readiness
from tests.faults.proxy import Fault, Faults, Proxy, latency, silence_from
from tests.faults.reading import Reader, cancel
from tests.faults.replicas import Clients, RedisPlace, Replicas, adds_up, got
from tests.faults.tails import LostTail
from tests.support.servers import RunningServer

LOG_TIMEOUT_S = 2.0
FEW, MANY = 60, 200


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisPlace]:
    place = RedisPlace(tmp_path)
    yield place
    place.close()


async def answers_of(server: RunningServer, *, resumable: bool) -> tuple[int, str]:
    """Return the status and the code of a new request's answer."""
    body = json.dumps({"prompt": "w says", "stream": True, "resumable": resumable, "max_tokens": 2})
    asked = request_bytes("POST", "/generate", body=body.encode())
    head, answer = await fetch(server.address, asked)
    return head.status, json.loads(answer).get("code", "") if head.status != 200 else ""


async def reason_of(server: RunningServer) -> str:
    """Return what `/health/ready` says."""
    _, body = await fetch(server.address, request_bytes("GET", "/health/ready"))
    return body.decode()


async def is_down(server: RunningServer) -> None:
    """Wait until the server says that its store is down; check what it takes then."""
    await until_readiness(server.address, 503)
    assert "store down" in await reason_of(server)
    assert await answers_of(server, resumable=True) == (503, "store_unavailable")
    assert await answers_of(server, resumable=False) == (200, "")


async def all_is_well(replicas: Replicas, clients: Clients, endings: dict[str, int]) -> None:
    verdict = await clients.all_end()
    assert verdict.holds, verdict
    assert verdict.endings == endings
    for scrape in await asyncio.to_thread(replicas.are_idle):
        assert adds_up(scrape), scrape.text
        assert scrape("penstock_streams_stored") == 0


async def test_redis_does_not_answer_for_a_while(redis: RedisPlace, tmp_path: Path) -> None:
    with Replicas(redis.log, tmp_path) as replicas:
        server = replicas.start()
        clients = Clients(replicas)
        stored = await clients.open(3, num_tokens=MANY)
        (unstored,) = await clients.open(1, num_tokens=100_000, resumable=False)
        await got([*stored, unstored], 3)
        redis.server.signal(signal.SIGSTOP)
        await is_down(server)
        seen = [(reader.num_comments, reader.cursor) for reader in stored]
        await got([unstored], unstored.cursor + 50)
        # Heartbeats come, and no token.
        while any(
            reader.num_comments == before[0] for reader, before in zip(stored, seen, strict=True)
        ):
            await got([unstored], unstored.cursor + 1)
        assert [reader.cursor for reader in stored] == [before[1] for before in seen]
        redis.server.signal(signal.SIGCONT)
        await until_readiness(server.address, 200)
        assert await cancel(server.address, clients.history, unstored.stream) == "cancelled"
        await all_is_well(replicas, clients, {"length": 3, "cancelled": 1})
        assert judge(clients.history).counts["resumed"] == 0


async def test_redis_stays_away_and_streams_are_cut_and_go_on(
    redis: RedisPlace, tmp_path: Path
) -> None:
    with Replicas(redis.log, tmp_path, log_timeout=LOG_TIMEOUT_S) as replicas:
        replicas.start(2)
        clients = Clients(replicas)
        stored = await clients.open(4, num_tokens=MANY)
        await got(stored, 3)
        redis.server.kill()
        for server in replicas.running:
            await is_down(server)
        assert await asyncio.gather(*(reader.closed() for reader in stored)) == ["cut"] * 4
        redis.server.start()
        for server in replicas.running:
            await until_readiness(server.address, 200)
        await all_is_well(replicas, clients, {"length": 4})


@asynccontextmanager
async def through_a_proxy(redis: RedisPlace, *faults: Fault) -> AsyncIterator[str]:
    """Yield the address of Redis behind faults in both directions."""
    async with Proxy(redis.server.address, lambda _: Faults(up=faults, down=faults)) as proxy:
        yield f"redis://127.0.0.1:{proxy.address[1]}/0"


async def test_one_server_is_cut_off_from_redis(redis: RedisPlace, tmp_path: Path) -> None:
    silent = asyncio.Event()
    async with through_a_proxy(redis, silence_from(silent)) as log:
        with Replicas(redis.log, tmp_path, log_timeout=LOG_TIMEOUT_S) as replicas:
            cut_off = await asyncio.to_thread(replicas.start, log=log)
            other = await asyncio.to_thread(replicas.start)
            clients = Clients(replicas)
            readers = await clients.open(4, num_tokens=MANY)
            elsewhere = [Reader(other.address, clients.history) for _ in readers]
            for follower, reader in zip(elsewhere, readers, strict=True):
                await follower.attach(reader.stream)
            clients.readers += elsewhere
            await got(readers, 3)
            silent.set()
            await is_down(cut_off)
            await got(elsewhere, readers[0].cursor + 20)
            assert await asyncio.gather(*(reader.closed() for reader in readers)) == ["cut"] * 4
            for reader in readers:
                reader.turn_to([other.address])
            verdict = await clients.all_end()
            assert verdict.holds, verdict
            assert verdict.endings == {"length": 4}


async def test_a_slow_redis_delays_and_changes_nothing(redis: RedisPlace, tmp_path: Path) -> None:
    async with through_a_proxy(redis, latency(0.1)) as log:
        with Replicas(log, tmp_path) as replicas:
            await asyncio.to_thread(replicas.start, 2)
            clients = Clients(replicas)
            readers = await clients.open(3, num_tokens=FEW)
            await got(readers, 1)
            await asyncio.to_thread(replicas.kill, replicas.running[0])
            await all_is_well(replicas, clients, {"length": 3})


async def test_a_cancel_stays_one_although_redis_loses_it(tmp_path: Path) -> None:
    redis = RedisPlace(tmp_path, appendfsync="always")
    with Replicas(redis.log, tmp_path) as replicas:
        replicas.start(2)
        owner, other = replicas.running
        clients = Clients(replicas, owner.address)
        (reader,) = await clients.open(1, num_tokens=100_000)
        await got([reader], 3)
        reader.leave()
        before = redis.server.on_disk()
        assert await cancel(owner.address, clients.history, reader.stream) == "cancelled"
        redis.server.kill()
        redis.server.cut_back(before)  # as if it had kept its last writes back
        for server in replicas.running:
            await until_readiness(server.address, 503)
        redis.server.start()
        for server in replicas.running:
            await until_readiness(server.address, 200)
        reader.turn_to([other.address])
        assert (await reader.read_through()).reason == "cancelled"
        await asyncio.to_thread(replicas.kill, owner)
        assert await cancel(other.address, clients.history, reader.stream) == "cancelled"
        verdict = judge(clients.history)
        assert verdict.holds, verdict
    redis.close()


async def test_redis_and_a_server_die_and_redis_has_lost_the_tail(tmp_path: Path) -> None:
    redis = RedisPlace(tmp_path, appendfsync="always")
    with Replicas(redis.log, tmp_path) as replicas:
        replicas.start(2)
        owner, other = replicas.running
        tail = await LostTail.begin(replicas, owner)
        follower = await tail.follower(other)
        before = redis.server.on_disk()
        while sum(redis.server.on_disk().values()) < 1.5 * sum(before.values()):
            await tail.read_on()
        await follower.got(tail.ahead.cursor)
        redis.server.kill()
        await asyncio.to_thread(replicas.kill, owner)
        redis.server.cut_back(before)  # as if it had kept its last writes back
        await tail.is_lost()
        redis.server.start()
        assert await follower.closed() == "cut"
        await tail.is_refused(follower, other)
        await tail.goes_on(other)
    redis.close()


async def test_redis_comes_back_empty(redis: RedisPlace, tmp_path: Path) -> None:
    with Replicas(redis.log, tmp_path) as replicas:
        replicas.start(2)
        server, other = replicas.running
        clients = Clients(replicas)
        (ended,) = await clients.open(1, num_tokens=2)
        await ended.closed()
        readers = await clients.open(3, num_tokens=MANY)
        elsewhere = [Reader(other.address, clients.history) for _ in readers]
        for follower, reader in zip(elsewhere, readers, strict=True):
            await follower.attach(reader.stream)
        clients.readers += elsewhere
        await got(readers, 3)
        redis.server.kill()
        shutil.rmtree(redis.appended)
        redis.server.start()
        await until_readiness(server.address, 200)
        await all_is_well(replicas, clients, {"length": 4})
