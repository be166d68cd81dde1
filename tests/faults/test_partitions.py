"""The network between replicas, clients and Redis breaks, on real machines of their own.

Each replica's engine signs its tokens, so a reader can tell which replica generated them. Whatever
breaks, all readers of a stream must see the same signatures: two replicas that went on with one
stream would show different ones.
"""

import asyncio
import dataclasses
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from penstock.store.redis.layout import LEASE_MS
from tests.faults.checker import judge
from tests.faults.history import Got, StreamHistory, numbered
from tests.faults.network import HERE, Link, Network, network, within
from tests.faults.processes import until_readiness
from tests.faults.reading import Reader, cancel
from tests.faults.replicas import TOKEN_S, Clients, Replicas, adds_up, got
from tests.faults.roving import RovingReader
from tests.store.servers import RedisServer
from tests.support import signed
from tests.support.servers import RunningServer

NUM_STREAMS = 4
NUM_TOKENS = 250
FOR_EVER = 100_000
SOON_S, LATE_S = 3.0, 120.0
"""The --log-timeout of the replica that gives its streams up soon, and of the others."""

LONGEST_PAUSE_S = 10 * LEASE_MS / 1000
NUM_FLAPS = 8
LONGEST_FLAP_S = 0.4
SIGNATURE = re.compile(r"(?<=:)(\d+) (\w) ")


class Site(NamedTuple):
    """A replica on a machine of its own."""

    sign: str
    server: RunningServer
    to_store: Link
    to_clients: Link


class Sites(NamedTuple):
    """Replicas over one Redis. `hasty` gives its streams up soon if it cannot reach Redis."""

    replicas: Replicas
    hasty: Site
    first: Site
    second: Site


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    folder = tmp_path_factory.mktemp("sites")
    with ExitStack() as stack:
        net = stack.enter_context(network())
        store = net.machine("store")
        options = {"bind": "0.0.0.0", "protected-mode": "no"}  # on a network of its own
        redis = RedisServer(folder, options=options, within=within(store))
        stack.callback(redis.kill)
        redis.start()
        replicas = stack.enter_context(Replicas("", folder, engine=signed.TARGET))
        yield Sites(
            replicas,
            *(
                started(net, store, redis.port, replicas, sign, log_timeout)
                for sign, log_timeout in (("h", SOON_S), ("f", LATE_S), ("s", LATE_S))
            ),
        )


def started(
    net: Network, store: str, port: int, replicas: Replicas, sign: str, log_timeout: float
) -> Site:
    """Start a replica on a new machine that has a link to Redis and a link to its clients."""
    machine = net.machine(sign)
    to_store, to_clients = net.link(store, machine), net.link(HERE, machine)
    server = replicas.start(
        program=f"{within(machine)} {sys.executable} -m penstock",
        host=to_clients.far.address,
        insecure=True,
        log=f"redis://{to_store.near.address}:{port}/0",
        log_timeout=log_timeout,
        engine_arg=[f"sign={sign}", "length=1000000", f"interval={TOKEN_S}"],
    )
    return Site(sign, server, to_store, to_clients)


class Load:
    """Streams that one site runs. Each has a reader there, and a follower at another site."""

    def __init__(self, sites: Sites, owner: Site, other: Site) -> None:
        self._replicas = sites.replicas
        self._owner, self._other = owner, other
        self.clients = Clients(sites.replicas, owner.server.address)
        self.readers: list[RovingReader] = []
        self.followers: list[RovingReader] = []

    async def begin(self, num_tokens: int = NUM_TOKENS) -> None:
        """Open the streams; return when every reader and every follower has some tokens."""
        self.readers = await self.clients.open(NUM_STREAMS, num_tokens=num_tokens)
        for reader in self.readers:
            follower = RovingReader([self._other.server.address], self.clients.history)
            await follower.attach(reader.stream)
            self.followers.append(follower)
        self.clients.readers += self.followers
        await got([*self.readers, *self.followers], 3)

    async def goes_on_elsewhere(self) -> None:
        """Wait until every follower has tokens that the owner has not generated."""
        for follower in self.followers:
            while self._signer(follower) == self._owner.sign:
                await follower.got(follower.cursor + 1)

    def _signer(self, reader: Reader) -> str:
        entries = reversed(self.clients.history.streams[reader.stream].entries)
        seen = (each for each in entries if isinstance(each, Got) and each.reader == reader.name)
        return str(SIGNATURE.findall(next(seen).text)[-1][1])

    async def changes_its_signer(self) -> None:
        """Check that all ends well, and that each stream has gone from its owner to another."""
        signers = await self.ends_well()
        assert all(len(each) > 1 and each[0] == self._owner.sign for each in signers), signers

    async def ends_well(self, reason: str = "length") -> list[str]:
        """Read everything to its end and judge it; check that the sites hold nothing then.

        Return the signers of each stream in their order ("fs").
        """
        await asyncio.gather(*(reader.read_through() for reader in self.clients.readers))
        history = self.clients.history
        signers = [trust_signatures(stream) for stream in history.streams.values()]
        verdict = judge(history)
        assert verdict.holds, verdict
        assert verdict.endings == {reason: NUM_STREAMS}
        for scrape in await asyncio.to_thread(self._replicas.are_idle):
            assert adds_up(scrape), scrape.text
            assert scrape("penstock_streams_stored") == 0
        return signers

    def num(self, what: str) -> int:
        """Return one of the verdict's counts."""
        return judge(self.clients.history).counts[what]


def trust_signatures(stream: StreamHistory) -> str:
    """Take the signatures that were seen first for the true ones; return the signers in order.

    So the checker finds every reader that saw others. The rest of the text must be as numbered.
    """
    events = {entry.at: entry.text for entry in reversed(stream.entries) if isinstance(entry, Got)}
    text = "".join(events[index] for index in range(len(events)))
    truth = stream.truth
    unsigned = numbered(truth.word, length=len(events), max_tokens=FOR_EVER)
    assert SIGNATURE.sub(r"\1 ", text) == unsigned.text
    stream.truth = dataclasses.replace(truth, text=text)
    signs = [sign for _, sign in SIGNATURE.findall(text)]
    return "".join(
        sign for before, sign in zip(["", *signs], signs, strict=False) if sign != before
    )


async def test_a_replica_that_cannot_reach_redis_shows_nothing_and_its_clients_go_on_elsewhere(
    sites: Sites,
) -> None:
    cut_off, other = sites.hasty, sites.first
    load = Load(sites, cut_off, other)
    await load.begin()
    before = [reader.num_comments for reader in load.readers]
    cut_off.to_store.cut()
    try:
        await load.goes_on_elsewhere()
        shown = [reader.cursor for reader in load.readers]
        ends = await asyncio.gather(*(reader.closed() for reader in load.readers))
        assert ends == ["cut"] * NUM_STREAMS
        assert [reader.cursor for reader in load.readers] == shown
        # Until then, heartbeats kept the connections open.
        assert all(now.num_comments > num for now, num in zip(load.readers, before, strict=True))
        moved, *returning = load.readers
        moved.turn_to([other.server.address])
        await moved.attach()
        await moved.got(moved.cursor + 20)
    finally:
        cut_off.to_store.mend()
    await until_readiness(cut_off.server.address, 200)
    for reader in returning:
        reader.turn_to([cut_off.server.address])
    await load.changes_its_signer()


@pytest.mark.parametrize("lose", [Link.lose_to_near, Link.lose_to_far], ids=["requests", "replies"])
async def test_a_link_to_redis_that_loses_one_direction_silently(
    sites: Sites, lose: Callable[[Link], None]
) -> None:
    deaf, other = sites.first, sites.second
    load = Load(sites, deaf, other)
    await load.begin()
    lose(deaf.to_store)
    try:
        await load.goes_on_elsewhere()
        shown = [reader.cursor for reader in load.readers]
        await got(load.followers, max(shown) + 20)
        assert [reader.cursor for reader in load.readers] == shown
    finally:
        deaf.to_store.mend()
    await load.changes_its_signer()
    assert (load.num("cut"), load.num("resumed")) == (0, 0)  # its clients noticed only a pause


async def test_a_lost_machine_costs_a_pause_and_comes_back_with_nothing(sites: Sites) -> None:
    lost, other = sites.second, sites.first
    load = Load(sites, lost, other)
    await load.begin()
    before = asyncio.get_running_loop().time()
    lost.to_store.cut()
    lost.to_clients.cut()
    try:
        await load.goes_on_elsewhere()
        shown = [reader.cursor for reader in load.readers]
        for reader in load.readers:  # nothing tells them that the machine is lost
            reader.leave("RST")
            reader.turn_to([other.server.address])
            await reader.attach()
        await got(load.readers, max(shown) + 20)
    finally:
        lost.to_clients.mend()
        lost.to_store.mend()
    await load.changes_its_signer()
    pauses = [follower.longest_pause_after(before) for follower in load.followers]
    assert all(pause and pause < LONGEST_PAUSE_S for pause in pauses), pauses


async def test_links_that_flap_lose_nothing(sites: Sites) -> None:
    chance = random.Random(16)
    flapping, other = sites.first, sites.second
    load = Load(sites, flapping, other)
    await load.begin(FOR_EVER)
    for number in range(NUM_FLAPS):
        links = [flapping.to_store, flapping.to_clients]
        broken = links if number % 3 == 2 else [links[number % 3]]
        for link in broken:
            link.cut()
        await asyncio.sleep(chance.uniform(0.05, LONGEST_FLAP_S))
        for link in broken:
            link.mend()
        everybody = [*load.readers, *load.followers]
        await got(everybody, max(each.cursor for each in everybody) + 3)
    for reader in load.readers:
        assert (
            await cancel(other.server.address, load.clients.history, reader.stream) == "cancelled"
        )
    await load.ends_well("cancelled")
    assert load.num("resumed") == 0
