"""Whatever happens to Redis, no log has a gap, a repetition or an entry of an old owner."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from penstock.store.protocol import CLAIMED, Entry, StoredLog
from penstock.store.redis import RedisStore, owning, survey, tenure
from penstock.store.redis.layout import LEASE_MS, LEASES, LOGS, REPLICAS
from penstock.store.redis.owning import MAX_WAITING_BYTES
from tests.faults.proxy import Faults, Proxy, cut, latency, proxied, silence_from
from tests.store.servers import RedisServer
from tests.store.stores import LONG_S, Replica

PAST_THE_LEASE_S = LEASE_MS / 1000 * 1.25
SLOW = "has not confirmed"

# More would only take long, if the server gets no time for a while.
MOST_WAITING = 2000

StartServer = Callable[..., RedisServer]
NewReplica = Callable[..., Awaitable[Replica]]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    servers: list[RedisServer] = []

    def start(options: Mapping[str, str] | None = None) -> RedisServer:
        server = RedisServer(tmp_path, options=options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
async def new_replica() -> AsyncIterator[NewReplica]:
    replicas: list[Replica] = []

    async def new(
        at: tuple[str, int], patience: float = LONG_S, query: str = "", **login: str
    ) -> Replica:
        url = f"redis://{at[0]}:{at[1]}/0{query}"
        replica = Replica(RedisStore(url, patience=patience, **login))
        await replica.start()
        replicas.append(replica)
        return replica

    yield new
    for replica in replicas:
        await replica.stop()


async def command(server: RedisServer, *words: Any) -> Any:
    """Ask the server itself."""
    async with Redis(port=server.port, protocol=2) as redis:
        return await redis.execute_command(*words)  # type: ignore[no-untyped-call]


class Writing:
    """Appends 0, 1, 2, … to some logs, one number to all in each write, without waiting."""

    def __init__(self, replica: Replica, num_logs: int = 5) -> None:
        self.replica = replica
        self.logs = [replica.store.open(f"s{number}", b"h") for number in range(num_logs)]
        self.num_written = 0
        self.acknowledged: list[int] = []

    def write(self, num: int = 10) -> None:
        for number in range(self.num_written, self.num_written + num):
            entry = str(number).encode()
            step: list[tuple[StoredLog, Entry]] = [(log, entry) for log in self.logs]
            self.replica.store.append(step, lambda number=number: self._acknowledge(number))  # type: ignore[misc]
        self.num_written += num

    def _acknowledge(self, number: int) -> None:
        self.acknowledged.append(number)
        self.replica.reports.note()

    @property
    def num_waiting(self) -> int:
        """How many numbers are not acknowledged."""
        return self.num_written - len(self.acknowledged)

    async def until_acknowledged(self) -> None:
        await self.replica.reports.until(lambda: len(self.acknowledged) == self.num_written)
        assert self.acknowledged == list(range(self.num_written))

    @property
    def entries(self) -> list[Entry]:
        return [str(number).encode() for number in range(self.num_written)]

    async def check(self, reader: Replica | None = None) -> None:
        """Check that the logs have exactly what was written, and have not been lost."""
        self.write()
        await self.until_acknowledged()
        assert self.replica.reports.order == []
        for log in self.logs:
            assert await (reader or self.replica).all_of(log.stream_id) == self.entries


async def until_problem(replica: Replica, words: str) -> None:
    await replica.reports.until(lambda: words in replica.store.problem)


async def until_back(replica: Replica) -> None:
    """Wait until the store was away for the replica, and is back."""

    def was_away() -> bool:
        # A store that gets no time for a second is slow, but not away.
        return any(each and SLOW not in each for each in replica.reports.problems)

    await replica.reports.until(lambda: was_away() and not replica.store.problem)


# Slow, stopped, killed.


async def test_a_slow_store_delays_and_its_leases_hold(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    other = await new_replica(server.address)
    async with proxied(server.address, up=[latency(0.4)], down=[latency(0.4)]) as proxy:
        slow = await new_replica(proxy.address)
        writing = Writing(slow)
        writing.write()
        await writing.until_acknowledged()
        await writing.check(other)
        assert other.reports.orphans == {}
        await slow.stop()


async def test_the_trial_of_all_commands_takes_nothing_from_the_lease(
    start_server: StartServer, new_replica: NewReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slow store, the first heartbeat could be too late after it."""
    server = start_server()
    left: list[int] = []

    async def trial(*arguments: Any) -> None:
        (name,) = await command(server, "SMEMBERS", REPLICAS)
        lease = LEASES + name.decode()
        await command(server, "PEXPIRE", lease, 60_000)
        await try_all(*arguments)
        left.append(await command(server, "PTTL", lease))

    try_all = owning._try_all
    monkeypatch.setattr(owning, "_try_all", trial)
    await new_replica(server.address)
    assert left[0] <= LEASE_MS


async def test_a_store_that_stops_for_longer_than_the_leases_is_a_pause(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    a, b = await new_replica(server.address), await new_replica(server.address)
    writing = Writing(a)
    writing.write()
    await writing.until_acknowledged()
    server.signal(signal.SIGSTOP)
    try:
        writing.write()
        await until_problem(a, SLOW)
        await until_problem(b, SLOW)
        await asyncio.sleep(PAST_THE_LEASE_S)
        writing.write()
    finally:
        server.signal(signal.SIGCONT)
    await writing.until_acknowledged()
    await writing.check(b)
    await a.reports.until(lambda: not a.store.problem)
    await b.reports.until(lambda: not b.store.problem)
    assert (a.reports.orphans, b.reports.orphans) == ({}, {})


@pytest.mark.parametrize("away_s", [0.0, PAST_THE_LEASE_S])
async def test_a_killed_store_with_its_data_is_a_pause(
    start_server: StartServer, new_replica: NewReplica, away_s: float
) -> None:
    server = start_server({"appendonly": "yes", "appendfsync": "everysec"})
    a, b = await new_replica(server.address), await new_replica(server.address)
    writing = Writing(a)
    writing.write()
    following = await b.reading("s0")
    await writing.until_acknowledged()
    writing.write()
    server.kill()
    writing.write()
    await until_problem(a, "cannot be reached")
    await asyncio.sleep(away_s)
    await asyncio.to_thread(server.start)
    await writing.until_acknowledged()
    await writing.check(b)
    await following.until_it_has(writing.num_written)
    assert following.entries == writing.entries
    assert (a.reports.orphans, b.reports.orphans) == ({}, {})


APPENDING = {"appendonly": "yes", "appendfsync": "always"}
"""Whatever such a server confirms is in its files, so a test knows what it cuts off."""


async def test_an_end_that_the_store_confirmed_and_lost_is_written_again(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server(APPENDING)
    a, b = await new_replica(server.address), await new_replica(server.address)
    log = a.store.open("s", b"h")
    await a.stored(log, b"1")
    before = server.on_disk()
    await a.stored(log, b"2")
    await a.ended(log, b"end", 60)
    server.kill()
    server.cut_back(before)
    await asyncio.to_thread(server.start)
    await until_back(b)
    following = await b.reading("s")
    assert following.entries in ([b"1"], [b"1", b"2", b"end"])  # its owner may have come first
    await following.until_it_has(3)
    assert following.entries == [b"1", b"2", b"end"]
    assert 0 < await command(server, "PTTL", f"{LOGS}s") <= 60_000
    assert await b.claim("s", 1) is None
    assert (a.reports.order, a.reports.orphans, b.reports.orphans) == ([], {}, {})


async def test_an_ended_log_that_an_emptied_store_gets_again_is_ended(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    a, b = await new_replica(server.address), await new_replica(server.address)
    log = a.store.open("s", b"h")
    await a.stored(log, b"1")
    await a.ended(log, b"end", 60)
    gone = a.store.open("gone", b"h")
    await a.ended(gone, b"end", 60)
    a.store.drop("gone")
    await command(server, "FLUSHALL")
    await until_back(a)  # it found out, and wrote again
    following = await b.reading("s")
    await following.until_it_has(2)
    assert following.entries == [b"1", b"end"]
    assert 0 < await command(server, "PTTL", f"{LOGS}s") <= 60_000
    assert await b.claim("s", 1) is None
    assert (await b.reading("gone")).following is None
    assert a.reports.order == []


async def test_nobody_claims_a_log_before_its_owner_could_write_what_the_store_has_lost(
    start_server: StartServer, new_replica: NewReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "LEASE_MS", 6000)  # the owner must be the first on a busy machine
    server = start_server(APPENDING)
    b = await new_replica(server.address)
    async with Proxy(server.address) as proxy:
        a = await new_replica(proxy.address)
        log = a.store.open("s", b"h")
        await a.stored(log, b"1")
        before = server.on_disk()
        await a.ended(log, b"end", 60)
        await proxy.down()
        await proxy.drop()
        server.kill()
        server.cut_back(before)
        await asyncio.to_thread(server.start)
        await until_back(b)
        claiming = asyncio.create_task(b.claim("s", 1))
        assert await b.all_of("s") == [b"1"]
        await proxy.up()
        assert await claiming is None
        assert await b.all_of("s") == [b"1", b"end"]
        await a.stop()


# Emptied, full, evicting.


async def test_a_store_that_restarts_empty_within_the_lease_gets_its_logs_again(
    start_server: StartServer, new_replica: NewReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenure, "LEASE_MS", 10_000)  # a busy machine must not be past it
    server = start_server()
    a = await new_replica(server.address)
    writing = Writing(a)
    writing.write(30)
    await writing.until_acknowledged()
    await command(server, "FLUSHALL")
    await writing.check(await new_replica(server.address))
    assert await command(server, "EXISTS", f"{LOGS}s0") == 1


async def test_a_store_that_comes_back_empty_after_the_lease_loses_the_logs(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    a = await new_replica(server.address)
    writing = Writing(a)
    writing.write()
    await writing.until_acknowledged()
    server.kill()
    writing.write()
    await asyncio.sleep(PAST_THE_LEASE_S)
    await asyncio.to_thread(server.start)
    await a.reports.until(lambda: len(a.reports.lost) == len(writing.logs))
    assert await command(server, "EXISTS", f"{LOGS}s0") == 0
    again = a.store.open("new", b"h")
    await a.stored(again, b"1")
    assert await a.all_of("new") == [b"1"]


async def test_a_full_store_says_so_and_goes_on_when_it_has_room(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server({"maxmemory-policy": "noeviction"})
    a, b = await new_replica(server.address), await new_replica(server.address)
    writing = Writing(a)
    writing.write()
    await writing.until_acknowledged()
    await command(server, "CONFIG", "SET", "maxmemory", "1mb")
    writing.write()
    await until_problem(a, "is full")
    await asyncio.sleep(PAST_THE_LEASE_S)
    writing.write()
    await command(server, "CONFIG", "SET", "maxmemory", "0")
    await writing.until_acknowledged()
    await writing.check(b)
    assert b.reports.orphans == {}  # a lease is renewed in a full store, too


async def test_errors_in_the_middle_of_a_pipeline_leave_no_gap(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    a = await new_replica(server.address)
    writing = Writing(a)
    following = await a.reading("s0")
    # Memory runs out and is there again, while entries arrive.
    for _ in range(30):
        for limit in ("1mb", "0"):
            setting = asyncio.create_task(command(server, "CONFIG", "SET", "maxmemory", limit))
            while not setting.done():
                if writing.num_waiting < MOST_WAITING:
                    writing.write(1)
                await asyncio.sleep(0)
    await writing.until_acknowledged()
    await writing.check()
    await following.until_it_has(writing.num_written)
    assert following.entries == writing.entries


async def test_a_gap_is_never_shown_and_is_filled(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    a = await new_replica(server.address)
    writing = Writing(a, 1)
    writing.write()
    await writing.until_acknowledged()
    following = await a.reading("s0")
    # As if entry 11 had met an error, and entry 12 not.
    await command(server, "XADD", f"{LOGS}s0", "1-12", "e", b"behind the gap")
    assert await a.all_of("s0") == writing.entries
    await writing.check()
    await following.until_it_has(writing.num_written)
    assert following.entries == writing.entries


async def test_a_log_that_was_evicted_is_written_again(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    a, b = await new_replica(server.address), await new_replica(server.address)
    log = a.store.open("claimed", b"h")
    await a.stored(log, b"1")
    claimed = await b.claim("claimed", 1)
    assert claimed is not None
    writing = Writing(a)
    writing.write()
    await writing.until_acknowledged()
    await a.reports.until(lambda: a.reports.lost == [log])
    a.reports.order.clear()
    await command(server, "DEL", f"{LOGS}s0", f"{LOGS}claimed")
    await b.stored(claimed, b"2")
    await writing.check(b)
    assert await a.all_of("claimed") == [b"1", CLAIMED, b"2"]


async def test_an_evicting_store_loses_whole_logs_or_nothing(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server({"maxmemory-policy": "allkeys-lru"})
    a = await new_replica(server.address)
    writing = Writing(a, 20)
    writing.write()
    await writing.until_acknowledged()
    used = (await command(server, "INFO", "memory"))["used_memory"]
    await command(server, "CONFIG", "SET", "maxmemory", used + 300_000)
    for number in range(100):
        await command(server, "SET", f"filler{number}", b"x" * 10_000)
        writing.write(1)
        await asyncio.sleep(0)
    assert (await command(server, "INFO", "stats"))["evicted_keys"] > 0
    await writing.until_acknowledged()
    await command(server, "CONFIG", "SET", "maxmemory", "0")
    writing.write()
    await writing.until_acknowledged()
    for log in set(writing.logs) - set(a.reports.lost):
        assert await a.all_of(log.stream_id) == writing.entries


async def test_an_owner_does_not_revive_a_log_that_another_has_ended(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    silent = asyncio.Event()
    b = await new_replica(server.address)
    faults = Faults([silence_from(silent)], [silence_from(silent)])
    async with Proxy(server.address, lambda _: faults) as proxy:
        a = await new_replica(proxy.address)
        log = a.store.open("s", b"h")
        await a.stored(log, b"1")
        silent.set()
        a.store.append([(log, b"late")], lambda: a.reports.order.append("then"))
        await b.reports.until(lambda: b.reports.orphans == {"s": 1})
        claimed = await b.claim("s", 1)
        assert claimed is not None
        await b.ended(claimed, b"end")
        b.store.drop("s")
        await b.stored(b.store.open("barrier", b"h"))
        assert await command(server, "EXISTS", f"{LOGS}s") == 0
        silent.clear()
        await proxy.drop()
        await a.reports.until(lambda: bool(a.reports.lost))
        await a.reports.until(lambda: a.reports.order == ["lost s", "then"])
        assert await command(server, "EXISTS", f"{LOGS}s") == 0
        await a.stop()


# Connections.


async def test_a_lost_reply_repeats_nothing(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    b = await new_replica(server.address)

    def cut_replies(chance: random.Random) -> Faults:
        return Faults(down=[cut(chance.randrange(700, 6000), chance.choice(("FIN", "RST")))])

    async with Proxy(server.address) as proxy:
        a = await new_replica(proxy.address)
        writing = Writing(a)
        proxy.faults_of = cut_replies
        await proxy.drop()
        while proxy.num_cuts < 12:
            writing.write(1)
            await asyncio.sleep(0.001)
        proxy.faults_of = lambda _: Faults()
        await proxy.drop()
        await writing.until_acknowledged()
        await writing.check(b)
        await a.stop()


async def test_nothing_of_a_replica_that_was_cut_off_is_acknowledged_once_others_own_its_logs(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    silent = asyncio.Event()
    b = await new_replica(server.address)
    faults = Faults([silence_from(silent)], [silence_from(silent)])
    async with Proxy(server.address, lambda _: faults) as proxy:
        a = await new_replica(proxy.address)
        writing = Writing(a)
        writing.write()
        await writing.until_acknowledged()
        silent.set()
        writing.write()
        await b.reports.until(lambda: len(b.reports.orphans) == len(writing.logs))
        claimed = await b.claim("s0", 1)
        assert claimed is not None
        silent.clear()
        await proxy.drop()
        await a.reports.until(lambda: a.reports.lost == writing.logs[:1])
        await writing.until_acknowledged()
        before = [str(number).encode() for number in range(10)]
        assert await b.all_of("s0") == [*before, CLAIMED]
        assert await b.all_of("s1") == writing.entries  # nobody has claimed it
        await a.stop()


async def test_after_its_patience_a_replica_gives_its_logs_up(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    async with Proxy(server.address) as proxy:
        a = await new_replica(proxy.address, patience=3.0)
        writing = Writing(a)
        writing.write()
        await writing.until_acknowledged()
        await proxy.down()
        await proxy.drop()
        writing.write()
        await a.reports.until(lambda: a.reports.num_unreachable == 1)
        assert "cannot be reached" in a.store.problem
        assert len(writing.acknowledged) == 10
        await proxy.up()
        # It is back, and its logs are orphans: also for itself.
        await a.reports.until(lambda: len(a.reports.orphans) == len(writing.logs))
        log = await a.claim("s0", 1)
        assert log is not None
        await a.stored(log, b"again")
        assert (await a.all_of("s0"))[-2:] == [CLAIMED, b"again"]
        assert len(writing.acknowledged) == 10
        assert a.reports.num_unreachable == 1
        await a.stop()


async def test_no_more_than_64_mib_wait_for_the_store(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    server = start_server()
    a = await new_replica(server.address)
    log = a.store.open("s", b"h")
    await a.stored(log)
    server.signal(signal.SIGSTOP)
    try:
        for _ in range(MAX_WAITING_BYTES // (8 << 20) + 1):
            a.store.append([(log, bytes(8 << 20))])
        await a.reports.until(lambda: a.reports.num_unreachable == 1)
    finally:
        server.signal(signal.SIGCONT)
    await a.reports.until(lambda: not a.store.problem)


# The store's own replicas.


async def test_a_failover_that_loses_the_tail_loses_nothing(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    primary = start_server()
    second = start_server({"replicaof": f"127.0.0.1 {primary.port}"})
    async with Proxy(primary.address) as proxy:
        a = await new_replica(proxy.address)
        writing = Writing(a)
        writing.write()
        await writing.until_acknowledged()
        following = await a.reading("s0")
        async with Redis(port=primary.port) as redis:
            await redis.set("mark", 1)
            assert await redis.wait(1, int(LONG_S) * 1000) == 1
        await command(second, "REPLICAOF", "NO", "ONE")
        writing.write()
        await writing.until_acknowledged()
        await following.until_it_has(20)
        proxy.target = second.address
        primary.kill()
        await writing.check()
        await following.until_it_has(writing.num_written)
        assert following.entries == writing.entries
        assert await command(second, "XLEN", f"{LOGS}s0") == 1 + writing.num_written
        await a.stop()


async def test_with_wait_an_entry_counts_only_when_a_replica_of_the_store_has_it(
    start_server: StartServer, new_replica: NewReplica
) -> None:
    primary = start_server()
    a = await new_replica(primary.address, query="?wait=1")
    writing = Writing(a)
    writing.write()
    await until_problem(a, SLOW)
    assert writing.acknowledged == []
    second = start_server({"replicaof": f"127.0.0.1 {primary.port}"})
    await writing.until_acknowledged()
    assert await command(second, "XLEN", f"{LOGS}s0") == 11
    await writing.check()
