"""Servers are killed under streams in every phase: the others go on, and nothing is lost."""

import asyncio
import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.faults.reading import Reader, cancel
from tests.faults.replicas import PLACES, Clients, Replicas, adds_up, got
from tests.support.lethal import SIGN
from tests.support.raw import ask, post
from tests.support.servers import RunningServer
from tests.support.waiting import eventually

SLOTS = 8
PATIENCE_S = 60.0


@pytest.fixture(scope="module", params=list(PLACES))
def replicas(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    place = PLACES[request.param](folder)
    with Replicas(place.log, folder, slots=SLOTS) as running:
        running.start(2)
        yield running
    place.close()


async def test_a_kill_loses_nothing_of_streams_in_any_phase(replicas: Replicas) -> None:
    victim, survivor = replicas.running
    gate = replicas.folder / "gate"
    gate.touch()
    clients = Clients(replicas)
    async with asyncio.timeout(PATIENCE_S):
        running = await clients.open(3, num_tokens=300)
        # These always hold back half a character and the beginning of a stop string.
        inside = await clients.open(3, "halved", num_tokens=300, stop=[f"{SIGN} never"])
        await clients.open(2, "gated")
        await got([*running, *inside], 3)
        await clients.open(5)  # they wait
        at_survivor = Clients(replicas, survivor.address)
        await at_survivor.open(SLOTS + 1)
        assert await cancel(victim.address, clients.history, running[0].stream) == "cancelled"
        await asyncio.to_thread(replicas.kill, victim)
        gate.unlink()
        verdict = await clients.all_end()
        assert verdict.holds, verdict
        assert verdict.endings == {"length": 12, "cancelled": 1}
        verdict = await at_survivor.all_end()
        assert verdict.holds, verdict
    (scrape,) = replicas.are_idle()
    assert adds_up(scrape), scrape.text
    assert scrape("penstock_streams_stored") == 0
    replicas.start()


@pytest.mark.parametrize("replicas", ["redis"], indirect=True)
async def test_a_kill_just_before_the_terminal_event(replicas: Replicas) -> None:
    victim = replicas.running[0]
    clients = Clients(replicas)
    (replicas.folder / "once").touch()
    (reader,) = await clients.open(1, "ending")
    await asyncio.to_thread(replicas.died, victim)
    verdict = await clients.all_end()
    assert verdict.holds, verdict
    assert verdict.endings == {"length": 1}
    # What has ended is read at a server that did not run it.
    newcomer = await asyncio.to_thread(replicas.start)
    again = Reader(newcomer.address, clients.history)
    again.stream = reader.stream
    ended = await again.read_through()
    assert reader.ended is not None
    assert ended.data == reader.ended.data


@pytest.mark.parametrize("replicas", ["folder"], indirect=True)
async def test_a_cancel_that_was_answered_survives_the_server(replicas: Replicas) -> None:
    victim, survivor = replicas.running
    clients = Clients(replicas)
    readers = await clients.open(4, num_tokens=100_000)
    await got(readers, 3)
    for reader in readers:
        assert await cancel(victim.address, clients.history, reader.stream) == "cancelled"
    await asyncio.to_thread(replicas.kill, victim)
    for reader in readers:
        assert await cancel(survivor.address, clients.history, reader.stream) == "cancelled"
    verdict = await clients.all_end()
    assert verdict.holds, verdict
    assert verdict.endings == {"cancelled": 4}
    await asyncio.to_thread(replicas.start)


async def test_a_cancel_away_from_the_owner_ends_the_stream_everywhere(replicas: Replicas) -> None:
    owner, other = replicas.running
    clients = Clients(replicas)
    readers = await clients.open(4, num_tokens=100_000)
    await got(readers, 3)
    elsewhere = [Reader(other.address, clients.history) for _ in readers]
    for reader, follower in zip(readers, elsewhere, strict=True):
        await follower.attach(reader.stream)
        assert await cancel(other.address, clients.history, reader.stream) == "cancelled"
        assert await cancel(owner.address, clients.history, reader.stream) == "cancelled"
    clients.readers += elsewhere
    verdict = await clients.all_end()
    assert verdict.holds, verdict
    assert verdict.endings == {"cancelled": 4}
    for scrape in await asyncio.to_thread(replicas.are_idle):
        assert adds_up(scrape), scrape.text


@pytest.mark.parametrize("replicas", ["folder"], indirect=True)
async def test_a_request_that_kills_its_server_at_once_kills_no_third(replicas: Replicas) -> None:
    """The engine kills before it has told anything of the request."""
    replicas.start(3 - len(replicas.running))
    every = list(replicas.running)
    body = json.dumps({"prompt": "x says poison", "stream": False}).encode()
    with contextlib.suppress(EOFError, ConnectionError):
        await asyncio.to_thread(ask, every[0].port, post(body, "Idempotency-Key: poison"))

    def dead() -> list[RunningServer]:
        return [server for server in every if server.process.poll() is not None]

    assert await asyncio.to_thread(eventually, lambda: len(dead()) == 2)
    for server in dead():
        replicas.died(server)
    (survivor,) = replicas.running
    assert await asyncio.to_thread(survivor.has_said, "took over a stream")
    await asyncio.to_thread(replicas.are_idle)
    assert survivor.process.poll() is None


@pytest.mark.parametrize("replicas", ["redis"], indirect=True)
async def test_a_request_that_kills_its_server_ends_after_two(replicas: Replicas) -> None:
    replicas.start()
    victims = list(replicas.running)
    beside = Clients(replicas)
    readers = await beside.open(6, num_tokens=300)
    await got(readers, 3)
    poison = Clients(replicas)
    gate = replicas.folder / "gate"
    gate.touch()
    (reader,) = await poison.open(1, "gated poison")
    gate.unlink()
    ended = await reader.read_through()
    assert (ended.reason, ended.error) == ("error", "replica_lost")
    assert b'"retry_safe":false' in ended.data.replace(b" ", b"")
    dead = [server for server in victims if server.process.poll() is not None]
    assert len(dead) == 2
    for server in dead:
        replicas.died(server)
    verdict = await beside.all_end()
    assert verdict.holds, verdict
    assert verdict.endings == {"length": 6}
    replicas.start()
