"""What the balancers that we ship do when a replica, a client or they themselves go away.

Slow tests try all balancers at once, in front of the same replicas.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.web.liveness import TICK_S
from tests.faults.checker import judge
from tests.faults.client_request import Send, fetch, request_bytes, send_request
from tests.faults.history import Ended, History, numbered
from tests.faults.http2_client import Http2Client
from tests.faults.processes import until_readiness
from tests.faults.proxy import Address
from tests.faults.reading import Reader, RefusedError, cancel, fresh_word
from tests.support.balancers import PROGRAMS, Balancer, balancer, balancers, replica, until_served
from tests.support.in_a_thread import in_a_thread
from tests.support.ports import free_port
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer
from tests.support.tcp_server import tcp_servers

NUMBERED = ["numbered=true", "length=100000"]
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
# Envoy's default of 15 s for an answer is the shortest of all.
SILENCE_S = 17
HEARTBEAT_S = 5
NUM_STREAMS = 2
"""With HTTP/2, on one connection."""
PATIENCE_S = 150.0
# Caddy 2.6 ends a body that was cut as if it were whole, and so does HAProxy 2.6 over HTTP/2.
# Clients look for the last event.
ENDS_WHAT_IS_CUT = {("Caddy", False), ("Caddy", True), ("HAProxy", True)}


# --- a replica that takes a request and dies


class Lethal:
    """Replicas that are ready and cut every POST unanswered, as a server that is killed does."""

    def __init__(self) -> None:
        self.posts: list[bytes] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        while not (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"POST"):
            writer.write(READY)
            await writer.drain()
        self.posts.append(head)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_post_that_a_replica_has_taken_is_sent_to_no_other(
    tmp_path: Path, client: Http2Client, name: str, http2: bool
) -> None:
    lethal = Lethal()
    async with (
        tcp_servers(3, lethal.answer) as ports,
        in_a_thread(balancer(name, tmp_path, ports)) as proxy,
    ):
        await until_served(proxy.address)
        asked = request_bytes("POST", "/generate", body=b'{"prompt": "Hello"}')
        ways = ((proxy.address, send_request), (proxy.secure_address, client.send))
        address, send = ways[http2]
        for number in (1, 2):  # the first perhaps on a connection that was used before
            with contextlib.suppress(ConnectionResetError):
                head, _ = await fetch(address, asked, send=send)
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
async def test_a_client_that_leaves_ends_its_answer_at_the_replica(
    steady: RunningServer, tmp_path: Path, name: str
) -> None:
    """Caddy with `flush_interval -1` would keep a stream for nobody.

    HAProxy without `abortonclose` would keep a whole answer.
    """
    async with in_a_thread(balancer(name, tmp_path, [steady.port])) as proxy:
        await until_served(proxy.address)
        for streamed in (True, False):
            before = Scrape(steady)
            asked = {"prompt": "Hello", "max_tokens": 100_000, "stream": streamed}
            request = request_bytes("POST", "/generate", body=json.dumps(asked).encode())
            answer = await send_request(proxy.address, request, lambda _: None)
            await one_more(steady, before, "penstock_streams_started_total")
            answer.leave()
            await one_more(steady, before, "penstock_streams_ended_total", cause="client_gone")


async def one_more(server: RunningServer, before: Scrape, name: str, **labels: str) -> None:
    """Wait until a counter has grown by one."""
    wanted = before(name, **labels) + 1
    await asyncio.to_thread(scrape_until, server, lambda now: now(name, **labels) == wanted)


# --- a long silence


async def test_no_balancer_cuts_an_answer_that_takes_long(
    tmp_path: Path, client: Http2Client
) -> None:
    """A whole answer is silent. A stream has Penstock's heartbeats."""
    whole = json.dumps({"prompt": "Hello", "max_tokens": 1, "stream": False}).encode()

    async def ask(address: Address, send: Send) -> int:
        asked = request_bytes("POST", "/generate", body=whole)
        head, body = await fetch(address, asked, send=send)
        assert json.loads(body)["usage"]["completion_tokens"] == 1
        return head.status

    async def read(address: Address, send: Send) -> str:
        reader = Reader(address, history, send=send)
        truth = numbered(fresh_word(), length=100_000, max_tokens=1)
        await reader.open(truth, resumable=False, max_tokens=1)
        how = await reader.closed()
        assert reader.num_comments >= SILENCE_S // (HEARTBEAT_S + TICK_S)
        return how

    async def all_of(proxy: Balancer) -> list[int | str]:
        await until_served(proxy.address)
        ways = ((proxy.address, send_request), (proxy.secure_address, client.send))
        return await asyncio.gather(*(each(*way) for way in ways for each in (ask, read)))

    history, flags = History(), {"heartbeat": HEARTBEAT_S, "engine_arg": NUMBERED}
    server_ = replica(str(tmp_path / "log"), free_port(), mock_interval=SILENCE_S, **flags)
    async with (
        in_a_thread(server_) as server,
        in_a_thread(balancers(PROGRAMS, tmp_path, [server.port])) as proxies,
    ):
        found = await asyncio.gather(*(all_of(each) for each in proxies.values()))
    assert found == [[200, "whole", 200, "whole"]] * len(PROGRAMS)
    assert judge(history).holds


# --- reloads and kills


@pytest.mark.timeout(180)
async def test_no_reload_and_no_kill_costs_a_resumable_stream(
    tmp_path: Path, client: Http2Client
) -> None:
    """Reload and kill the balancers, then kill a replica, while streams run through them."""
    log = str(tmp_path / "log")
    histories = {(name, http2): History() for name in PROGRAMS for http2 in (False, True)}
    flags = {"mock_interval": 0.03, "engine_arg": NUMBERED}
    first, second = replica(log, free_port(), **flags), replica(log, free_port(), **flags)
    async with in_a_thread(first) as one, in_a_thread(second) as two:
        ports = [one.port, two.port]
        async with in_a_thread(balancers(PROGRAMS, tmp_path, ports)) as proxies:
            readers = await asyncio.gather(
                *(
                    begin(
                        Reader(proxies[name].secure_address, history, send=client.send)
                        if http2
                        else Reader(proxies[name].address, history)
                    )
                    for (name, http2), history in histories.items()
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
            await until_readiness(two.address, 200)
            await asyncio.gather(*map(until_more, readers))
            recorded = [each for each in histories.values() for _ in range(NUM_STREAMS)]
            for reader, history in zip(readers, recorded, strict=True):
                assert await cancel(two.address, history, reader.stream) == "cancelled"
            assert {(await task).reason for task in reading} == {"cancelled"}
    for way, history in histories.items():
        verdict = judge(history)
        accepted = {"I3"} if way in ENDS_WHAT_IS_CUT else set()
        assert verdict.broken() <= accepted, f"{way}: {verdict}"
        assert verdict.counts["resumed"] >= NUM_STREAMS  # every balancer was killed


@pytest.mark.timeout(180)
async def test_a_killed_replica_costs_a_client_only_what_was_under_way(
    tmp_path: Path, client: Http2Client
) -> None:
    """Regression: Envoy gave the same request again and again to the replica that was gone."""
    log, is_killed = str(tmp_path / "log"), asyncio.Event()
    first, second = (replica(log, free_port(), mock_interval=0.01) for _ in range(2))
    asked = request_bytes("POST", "/generate", body=b'{"prompt": "Hi", "max_tokens": 2}')

    async def num_failed(address: Address, send: Send) -> int:
        """Ask one request after the other, and 50 after the kill."""
        failed = num_asked = 0
        while num_asked < 50:
            try:
                head, _ = await fetch(address, asked, send=send)
                failed += head.status != 200
            except OSError:
                failed += 1
            num_asked += is_killed.is_set()
            await asyncio.sleep(0.02)
        return failed

    async with (
        in_a_thread(first) as one,
        in_a_thread(second) as two,
        in_a_thread(balancers(PROGRAMS, tmp_path, [one.port, two.port])) as proxies,
    ):
        clients = {}
        async with asyncio.TaskGroup() as tasks:
            for name, proxy in proxies.items():
                await until_served(proxy.address)
                ways = ((proxy.address, send_request), (proxy.secure_address, client.send))
                for n in range(4):
                    clients[name, n] = tasks.create_task(num_failed(*ways[n % 2]))
            before = Scrape(one)("penstock_streams_started_total")
            await asyncio.to_thread(
                scrape_until,
                one,
                lambda now: now("penstock_streams_started_total") > before + len(clients),
            )
            one.signal(signal.SIGKILL)
            await asyncio.to_thread(one.process.wait)
            is_killed.set()
    failures = {who: task.result() for who, task in clients.items()}
    assert max(failures.values()) <= 1, str(failures)


async def read_through(reader: Reader) -> Ended:
    """Read to the end as Penstock's clients do: a balancer's own 502 and 503 are tried again."""
    while True:
        try:
            return await reader.read_through(PATIENCE_S)
        except RefusedError as refused:
            if refused.status not in (502, 503):
                raise
            await asyncio.sleep(0.1)


async def until_more(reader: Reader) -> None:
    """Wait until a reader has more than now, over whichever connection."""
    shown = reader.cursor
    while reader.cursor == shown:  # noqa: ASYNC110 - each connection has events of its own
        await asyncio.sleep(0.05)


async def begin(reader: Reader) -> Reader:
    """Open a stream that lasts until it is cancelled."""
    await until_served(reader.address, reader.send)
    truth = numbered(fresh_word(), length=100_000, max_tokens=100_000)
    await reader.open(truth, max_tokens=100_000)
    return reader
