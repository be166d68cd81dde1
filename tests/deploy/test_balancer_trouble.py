"""What the balancers that we ship do when a replica, a client or they themselves go away.

Slow tests try all balancers at once, in front of the same replicas.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.faults.checker import judge
from tests.faults.client_request import fetch, request_bytes
from tests.faults.history import Ended, History, numbered
from tests.faults.processes import until_readiness
from tests.faults.proxy import Address
from tests.faults.reading import Reader, RefusedError, fresh_word
from tests.support.balancers import PROGRAMS, Balancer, balancer, balancers, replica
from tests.support.proxies import free_port
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer

NUMBERED = ["numbered=true", "length=100000"]
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
# Envoy's default of 15 s for an answer is the shortest of all.
SILENCE_S = 17
NUM_STREAMS = 3
Some = TypeVar("Some")


@contextlib.asynccontextmanager
async def in_a_thread(context: contextlib.AbstractContextManager[Some]) -> AsyncIterator[Some]:
    """Enter and leave a context that takes its time, while this event loop turns."""
    entered = await asyncio.to_thread(context.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def until_served(address: Address) -> None:
    """Wait until the balancer has found a replica that is ready."""
    async with asyncio.timeout(30):
        while True:
            head, _ = await fetch(address, request_bytes("GET", "/health/ready"))
            if head.status == 200:
                return
            await asyncio.sleep(0.05)


# --- a replica that takes a request and dies


class Lethal:
    """Replicas that are ready and cut every POST unanswered, as a server that is killed does."""

    def __init__(self) -> None:
        self.posts: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    self.posts.append(head)
                    break
                writer.write(READY)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def lethal_replicas() -> AsyncIterator[tuple[Lethal, list[int]]]:
    lethal = Lethal()
    servers = [await asyncio.start_server(lethal.answer, "127.0.0.1", 0) for _ in range(3)]
    try:
        yield lethal, [each.sockets[0].getsockname()[1] for each in servers]
    finally:
        for each in servers:
            each.close()


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_post_that_a_replica_has_taken_is_sent_to_no_other(
    tmp_path: Path, name: str
) -> None:
    async with (
        lethal_replicas() as (lethal, ports),
        in_a_thread(balancer(name, tmp_path, ports)) as proxy,
    ):
        await until_served(proxy.address)
        asked = request_bytes("POST", "/generate", body=b'{"prompt": "Hello"}')
        for number in (1, 2):  # the first perhaps on a connection that was used before
            with contextlib.suppress(ConnectionResetError):
                head, _ = await fetch(proxy.address, asked)
                assert head.status in (502, 503)
            assert len(lethal.posts) == number


# --- a client that leaves


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve a token every 50 ms. One prompt's first token takes long."""
    log = str(tmp_path_factory.mktemp("steady") / "log")
    with replica(log, free_port(), mock_interval=0.05, engine_arg=NUMBERED) as server:
        yield server


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_client_that_leaves_ends_its_stream_at_the_replica(
    steady: RunningServer, tmp_path: Path, name: str
) -> None:
    """Caddy with `flush_interval -1` would keep the request for nobody."""
    gone = Scrape(steady)("penstock_streams_ended_total", cause="client_gone")
    async with in_a_thread(balancer(name, tmp_path, [steady.port])) as proxy:
        await until_served(proxy.address)
        reader = Reader(proxy.address, History())
        truth = numbered(fresh_word(), length=100_000, max_tokens=100_000)
        await reader.open(truth, resumable=False, max_tokens=100_000)
        await reader.got(3)
        reader.leave()
        await asyncio.to_thread(
            scrape_until,
            steady,
            lambda now: now("penstock_streams_ended_total", cause="client_gone") == gone + 1,
        )


# --- a long silence


async def test_no_balancer_cuts_a_whole_answer_that_takes_long(tmp_path: Path) -> None:
    asked = json.dumps({"prompt": "Hello", "max_tokens": 1, "stream": False}).encode()

    async def ask(proxy: Balancer) -> int:
        await until_served(proxy.address)
        head, body = await fetch(proxy.address, request_bytes("POST", "/generate", body=asked))
        assert json.loads(body)["usage"]["completion_tokens"] == 1
        return head.status

    server_ = replica(str(tmp_path / "log"), free_port(), mock_interval=SILENCE_S)
    async with (
        in_a_thread(server_) as server,
        in_a_thread(balancers(PROGRAMS, tmp_path, [server.port])) as proxies,
    ):
        statuses = await asyncio.gather(*(ask(each) for each in proxies.values()))
    assert statuses == [200] * len(PROGRAMS)


# --- reloads and kills


@pytest.mark.timeout(180)
async def test_no_reload_and_no_kill_costs_a_resumable_stream(tmp_path: Path) -> None:
    """Reload and kill the balancers, then kill a replica, while streams run through them."""
    log, histories = str(tmp_path / "log"), {name: History() for name in PROGRAMS}
    flags = {"mock_interval": 0.03, "engine_arg": NUMBERED}
    first, second = replica(log, free_port(), **flags), replica(log, free_port(), **flags)
    async with in_a_thread(first) as one, in_a_thread(second) as two:
        ports = [one.port, two.port]
        async with in_a_thread(balancers(PROGRAMS, tmp_path, ports)) as proxies:
            readers = await asyncio.gather(
                *(
                    begin(proxy.address, histories[name])
                    for name, proxy in proxies.items()
                    for _ in range(NUM_STREAMS)
                )
            )
            reading = [asyncio.create_task(read_through(each)) for each in readers]
            await asyncio.gather(*(reader.got(20) for reader in readers))
            for proxy in proxies.values():
                await asyncio.to_thread(proxy.reload, ports[::-1])
            assert all(reader.cursor >= 20 for reader in readers)
            assert not any(task.done() for task in reading)
            num_started = sum(Scrape(each)("penstock_streams_started_total") for each in (one, two))
            assert num_started == len(readers)  # no POST began a second stream
            for proxy in proxies.values():
                await asyncio.to_thread(proxy.kill)
                await asyncio.to_thread(proxy.start)
            one.signal(signal.SIGKILL)
            await asyncio.to_thread(one.process.wait)
            for task in reading:
                assert (await task).reason == "length"
            await until_readiness(two.address, 200)
    for name, history in histories.items():
        verdict = judge(history)
        # Caddy 2.6 ends a body that was cut as if it were whole. Clients look for the last event.
        assert verdict.broken() <= ({"I3"} if name == "Caddy" else set()), f"{name}: {verdict}"
        assert verdict.counts["resumed"] >= NUM_STREAMS  # every balancer was killed


async def read_through(reader: Reader) -> Ended:
    """Read to the end as Penstock's clients do: a balancer's own 502 and 503 are tried again."""
    while True:
        try:
            return await reader.read_through()
        except RefusedError as refused:
            if refused.status not in (502, 503):
                raise
            await asyncio.sleep(0.1)


async def begin(address: Address, history: History) -> Reader:
    """Open a stream that lasts through the whole test."""
    await until_served(address)
    reader = Reader(address, history)
    await reader.open(numbered(fresh_word(), length=100_000, max_tokens=600), max_tokens=600)
    return reader
