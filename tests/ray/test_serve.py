"""Penstock on a Ray cluster: its streams survive nodes, replicas and deploys."""

import asyncio
import contextlib
import itertools
import json
import re
import time
from typing import Any

import psutil
import pytest

from tests.faults.checker import judge
from tests.faults.client_request import fetch, request_bytes, send_request
from tests.faults.history import History, numbered
from tests.faults.proxy import Address
from tests.faults.reading import Reader, RefusedError, cancel
from tests.faults.roving import RovingReader
from tests.ray.cluster import Cluster, address_of
from tests.support.waiting import eventually

TOKEN_S = 0.02
PATIENCE_S = 60.0
TWO_DEPLOYS_S = 150.0
RUNNING = re.compile(r"^penstock_streams_running(?:\{[^}]*\})? (\d+)", re.MULTILINE)


@pytest.fixture(scope="module")
def flags(log: str) -> list[str]:
    """Return the flags of all servers."""
    engine = ["--engine=mock", "--engine-arg=numbered=true", "--engine-arg=length=100000"]
    return [*engine, f"--mock-interval={TOKEN_S}", f"--log={log}", "--heartbeat=1", "--insecure"]


@pytest.fixture
def served(cluster: Cluster, flags: list[str]) -> Cluster:
    """Deploy two replicas, one on each node."""
    cluster.serve(flags, **TWO_REPLICAS)
    assert cluster.has_servers(2)
    return cluster


QUICK: dict[str, Any] = {"health_check_period_s": 1, "graceful_shutdown_timeout_s": 3}
TWO_REPLICAS: dict[str, Any] = {
    **QUICK,
    "autoscaling_config": {"min_replicas": 2, "max_replicas": 2},
}


class Client(RovingReader):
    """A reader that tries again while Ray's proxy has no replica for it."""

    def __init__(self, cluster: Cluster, history: History) -> None:
        super().__init__([cluster.address], history)

    async def attach(self, stream: str = "", **fields: Any) -> None:
        try:
            await super().attach(stream, **fields)
        except RefusedError as refused:
            if refused.status < 500:
                raise
            raise ConnectionResetError(str(refused)) from refused


async def streams_at(server: Address) -> int:
    """Return how many streams a Penstock server runs."""
    _, metrics = await fetch(server, request_bytes("GET", "/metrics"))
    found = RUNNING.search(metrics.decode())
    assert found is not None
    return int(found[1])


async def until_streams(server: Address, num: int) -> None:
    """Poll a server's metrics: from outside there is no event to wait for."""
    async with asyncio.timeout(PATIENCE_S):
        while await streams_at(server) != num:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


async def open_until_at(
    server: Address, cluster: Cluster, history: History, num_tokens: int
) -> list[Client]:
    """Open streams through the proxy until some of them run at this server."""
    clients: list[Client] = []
    while await streams_at(server) < 2:
        assert len(clients) < 50
        client = Client(cluster, history)
        await client.begin(num_tokens)
        await client.got(0)
        clients.append(client)
    return clients


async def test_a_stream_goes_on_at_another_node_when_its_node_is_killed(served: Cluster) -> None:
    """Its client resumes through Ray's proxy. No token is lost, repeated or changed."""
    history, node = History(), served.nodes[-1]
    (server,) = node.servers()
    clients = await open_until_at(address_of(server), served, history, 800)
    await asyncio.gather(*(client.got(5) for client in clients))
    moment = time.monotonic()
    node.kill()
    await asyncio.gather(*(client.read_through(PATIENCE_S) for client in clients))
    assert judge(history).holds, judge(history)
    pauses = [
        pause for client in clients if (pause := client.longest_pause_after(moment)) is not None
    ]
    print(f"{len(pauses)} streams went on after at most {max(pauses):.1f} s")
    assert 1 < max(pauses) < 30  # it includes the two seconds of a dead server's lease
    # Ray places another replica as soon as it has a node for it.
    served.add_node()
    assert await asyncio.to_thread(served.has_servers, 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_answer(served: Cluster, stream: bool) -> None:
    body = json.dumps({"prompt": "long", "max_tokens": 50_000, "stream": stream}).encode()
    servers = [address_of(each) for each in served.servers()]
    for server in servers:
        await until_streams(server, 0)
    request = await send_request(
        served.address, request_bytes("POST", "/generate", body=body), lambda _: None
    )
    async with asyncio.timeout(PATIENCE_S):
        while sum([await streams_at(each) for each in servers]) != 1:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    request.leave()
    for server in servers:
        await until_streams(server, 0)


async def test_tokens_come_through_the_proxy_as_they_are_made(served: Cluster) -> None:
    history = History()
    client = Client(served, history)
    client.arrivals = []
    await client.begin(60)
    await client.read_through()
    gaps = [late - early for early, late in itertools.pairwise(client.arrivals)]
    assert judge(history).holds
    assert sum(gap > TOKEN_S / 5 for gap in gaps) > 30


async def test_penstock_knows_the_clients_address(served: Cluster) -> None:
    """Idempotency keys belong to their owners, which are addresses here. A header forges none."""

    async def stream_of(source: str, *headers: str) -> str:
        headers = ("Idempotency-Key: of-one-address", *headers)
        reader = Reader(served.address, History(), source=source, headers=headers)
        await reader.open(numbered("same", length=100_000, max_tokens=3), max_tokens=3)
        await reader.read_through()
        return reader.stream

    first, other = await stream_of("127.0.0.2"), await stream_of("127.0.0.3")
    assert first != other
    assert await stream_of("127.0.0.2") == first
    assert await stream_of("127.0.0.3", "Forwarded: for=127.0.0.2") == other
    assert await stream_of("127.0.0.3", "X-Forwarded-For: 127.0.0.2") == other


async def test_a_dead_server_is_replaced_and_its_streams_go_on(served: Cluster) -> None:
    history = History()
    server = served.servers()[0]
    clients = await open_until_at(address_of(server), served, history, 800)
    await asyncio.gather(*(client.got(5) for client in clients))
    server.kill()
    await asyncio.gather(*(client.read_through(PATIENCE_S) for client in clients))
    assert judge(history).holds, judge(history)
    assert served.has_servers(2)


async def test_a_dead_replica_leaves_no_server_behind(served: Cluster) -> None:
    """Else the server would keep the memory of the GPU that Ray gives to the next replica."""
    server = served.servers()[0]
    replica = server.parent()
    assert replica is not None
    assert "ServeReplica" in replica.cmdline()[0]
    processes = [server, *server.children(recursive=True)]
    replica.kill()
    assert eventually(lambda: not any(is_alive(each) for each in processes))
    assert served.has_servers(2)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


async def test_a_deploy_loses_no_stream(served: Cluster, flags: list[str]) -> None:
    """Answers that take longer than `graceful_shutdown_timeout_s` go on at another replica."""
    history = History()
    clients = [Client(served, history) for _ in range(4)]
    for client in clients:
        await client.begin(100_000)
    reading = [asyncio.create_task(client.read_through(TWO_DEPLOYS_S)) for client in clients]
    before = {each.pid for each in served.servers()}

    def are_replaced() -> bool:
        now = {each.pid for each in served.servers()}
        return len(now) == 2 and not now & before

    await asyncio.to_thread(served.serve, [*flags, "--retain=301"], **TWO_REPLICAS)
    assert await asyncio.to_thread(eventually, are_replaced, TWO_DEPLOYS_S)
    await asyncio.gather(*(client.got(client.cursor + 5) for client in clients))
    for client in clients:
        await cancel(served.address, history, client.stream)
    await asyncio.gather(*reading)
    assert judge(history).holds, judge(history)


async def test_ray_adds_a_replica_under_load_and_takes_it_away_again(
    cluster: Cluster, flags: list[str]
) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2}
    quick = {
        "upscale_delay_s": 1,
        "downscale_delay_s": 1,
        "metrics_interval_s": 1,
        "look_back_period_s": 2,
    }
    await asyncio.to_thread(cluster.serve, flags, autoscaling_config=scaling | quick, **QUICK)
    assert await asyncio.to_thread(cluster.has_servers, 1)
    history = History()
    clients = [Client(cluster, history) for _ in range(6)]
    for client in clients:
        await client.begin(100_000)
    reading = [asyncio.create_task(client.read_through(TWO_DEPLOYS_S)) for client in clients]
    assert await asyncio.to_thread(cluster.has_servers, 2)
    for client in clients:
        await cancel(cluster.address, history, client.stream)
    await asyncio.gather(*reading)
    assert judge(history).holds, judge(history)
    assert await asyncio.to_thread(cluster.has_servers, 1)
