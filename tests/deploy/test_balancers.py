"""Replicas behind the balancers that we ship: tokens come at once, and deploys refuse nothing."""

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.checker import judge
from tests.faults.client_request import Send, fetch, request_bytes, send_request
from tests.faults.history import History, numbered
from tests.faults.http2_client import Http2Client
from tests.faults.processes import until_readiness
from tests.faults.proxy import Address
from tests.faults.reading import Reader, fresh_word
from tests.support.balancers import PROGRAMS, Balancer, balancer, balancers, replica, store
from tests.support.ports import free_port
from tests.support.servers import RunningServer

NUMBERED = ["numbered=true", "length=100000"]
PATIENCE_S = 90.0
TOKEN_S = 0.05


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve a token every 50 ms."""
    log = str(tmp_path_factory.mktemp("steady") / "log")
    with replica(log, free_port(), mock_interval=TOKEN_S, engine_arg=NUMBERED) as server:
        yield server


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_balancer_passes_each_token_on_at_once(
    steady: RunningServer, tmp_path: Path, client: Http2Client, name: str
) -> None:
    """HAProxy without `http-no-delay` would put four of these tokens into one lump."""
    history = History()

    async def num_gaps(address: Address, send: Send = send_request) -> int:
        reader = Reader(address, history, send=send)
        reader.arrivals = []
        truth = numbered(fresh_word(), length=100_000, max_tokens=60)
        await reader.open(truth, max_tokens=60)
        await reader.read_through()
        gaps = [late - early for early, late in itertools.pairwise(reader.arrivals)]
        return sum(gap > TOKEN_S / 5 for gap in gaps)

    with balancer(name, tmp_path, [steady.port]) as proxy:
        directly, *through = await asyncio.gather(
            num_gaps(steady.address),
            num_gaps(proxy.address),
            num_gaps(proxy.secure_address, client.send),
        )
    assert judge(history).holds
    assert min(through) > directly / 2


async def test_nginx_gives_a_request_that_kills_engines_to_no_other_replica(
    tmp_path: Path,
) -> None:
    """All of nginx's servers are one here: its log tells how often it got the request."""
    fatal = ["die_at=0", "fatal=poison"]
    asked = json.dumps({"prompt": "poison", "stream": False}).encode()
    with (
        replica(str(tmp_path / "log"), free_port(), engine_arg=fatal) as server,
        balancer("nginx", tmp_path, [server.port] * 3) as proxy,
    ):
        head, _ = await fetch(proxy.address, request_bytes("POST", "/generate", body=asked))
    assert head.status == 503
    # The server has ended, so its log is complete.
    assert len([line for line in server.output if " route=/generate " in line]) == 1


# --- a deploy


class Replicas:
    """Three replicas, which can be replaced one after the other."""

    def __init__(self, log: str, **flags: float) -> None:
        self._log = log
        self._flags = flags
        self.ports = [free_port() for _ in range(3)]
        self._servers: dict[int, tuple[RunningServer, contextlib.ExitStack]] = {}

    async def start(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(self._start, port) for port in self.ports))

    def _start(self, port: int) -> None:
        stack = contextlib.ExitStack()
        server = stack.enter_context(
            replica(
                self._log,
                port,
                mock_interval=0.02,
                engine_arg=NUMBERED,
                **self._flags,
            )
        )
        self._servers[port] = (server, stack)

    async def replace(self, port: int) -> None:
        """Ask a replica to end, and start another one in its place when it has."""
        server, stack = self._servers.pop(port)
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, PATIENCE_S) == 0, server.output
        stack.close()
        assert not [line for line in server.output if "did not take their responses" in line]
        await asyncio.to_thread(self._start, port)
        await until_readiness(("127.0.0.1", port), 200)

    async def close(self) -> None:
        stacks = [stack for _, stack in self._servers.values()]
        await asyncio.gather(*(asyncio.to_thread(stack.close) for stack in stacks))


@contextlib.asynccontextmanager
async def replicas(log: str, **flags: float) -> AsyncIterator[Replicas]:
    running = Replicas(log, **flags)
    try:
        await running.start()
        yield running
    finally:
        await running.close()


# nginx asks for no readiness, so a replica need not wait until nginx has noticed. The drain timeout
# is long enough for a short stream to go on at another replica and end here, and no long one's.
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("names", "kept_in", "flags"),
    [
        (("HAProxy", "Caddy", "Envoy"), "Redis", {"drain_timeout": 4}),
        (("nginx",), "folder", {"drain_grace": 0, "drain_timeout": 3}),
    ],
)
async def test_a_deploy_refuses_nothing_and_every_stream_is_whole(
    tmp_path: Path,
    client: Http2Client,
    names: tuple[str, ...],
    kept_in: str,
    flags: dict[str, float],
) -> None:
    """Balancers that ask for readiness share a deploy."""
    history, deployed, num_whole = History(), asyncio.Event(), 0

    async def short(address: Address, send: Send) -> None:
        """Ask for short streams that end with their connection. None is cut."""
        while not deployed.is_set():
            reader = Reader(address, history, send=send)
            truth = numbered(fresh_word(), length=100_000, max_tokens=10)
            await reader.open(truth, resumable=False, max_tokens=10)
            assert await reader.closed() == "whole"

    async def begin_long(first: Address, then: Balancer) -> Reader:
        """Ask a replica for a stream that it cannot end in time; go on through the balancer."""
        reader = Reader(first, history)
        await reader.open(numbered(fresh_word(), length=100_000, max_tokens=400), max_tokens=400)
        reader.address, reader.send = then.secure_address, client.send
        return reader

    async def whole(address: Address, send: Send) -> None:
        """Ask for whole answers."""
        nonlocal num_whole
        asked = json.dumps({"prompt": "Hello", "max_tokens": 10, "stream": False}).encode()
        while not deployed.is_set():
            asking = request_bytes("POST", "/generate", body=asked)
            head, body = await fetch(address, asking, send=send)
            assert head.status == 200, body
            assert json.loads(body)["text"] == numbered("Hello", length=10, max_tokens=10).text
            num_whole += 1

    with store(kept_in, tmp_path) as log:
        async with replicas(log, **flags) as running:
            with balancers(names, tmp_path, running.ports) as proxies:
                async with asyncio.TaskGroup() as clients:
                    for name, proxy in proxies.items():
                        if name != "Caddy":  # it cuts answers over HTTP/1.1 (docs/scaling.md)
                            clients.create_task(short(proxy.address, send_request))
                        for load in (short, whole):  # on one connection
                            clients.create_task(load(proxy.secure_address, client.send))
                    for port in running.ports:
                        for proxy in proxies.values():
                            reader = await begin_long(("127.0.0.1", port), proxy)
                            clients.create_task(reader.read_through())
                        await running.replace(port)
                    deployed.set()
    verdict = judge(history)
    assert verdict.holds, verdict
    assert verdict.counts["refused"] == 0
    assert verdict.counts["resumed"] >= len(running.ports) * len(names)
    assert num_whole >= len(running.ports) * len(names)
