"""The balancers that we ship, as clients of other machines see them: HTTP/2 over TLS."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.checker import judge
from tests.faults.client_request import fetch, request_bytes
from tests.faults.history import History, Truth, numbered
from tests.faults.http2_client import Http2Client, Http2Request
from tests.faults.proxy import Address
from tests.faults.reading import Reader, fresh_word
from tests.support.balancers import PROGRAMS, Balancer, balancers, replica, trusting, until_served
from tests.support.in_a_thread import in_a_thread
from tests.support.ports import free_port
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer
from tests.support.tcp_server import tcp_servers

NUMBERED = ["numbered=true", "length=100000"]
NUM_STREAMS = 8
WIDE = 2000
"""Letters of a token, so that a few of them fill a stream's window."""
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve a token every 50 ms."""
    log = str(tmp_path_factory.mktemp("steady") / "log")
    with replica(log, free_port(), mock_interval=0.05, engine_arg=NUMBERED) as server:
        yield server


@pytest.fixture(scope="module")
def proxies(
    steady: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Balancer]]:
    """All balancers, in front of the same replica."""
    with balancers(PROGRAMS, tmp_path_factory.mktemp("proxies"), [steady.port]) as made:
        yield made


def endless() -> Truth:
    return numbered(fresh_word(), length=100_000, max_tokens=100_000)


# --- many streams on one connection


@pytest.mark.parametrize("name", PROGRAMS)
async def test_streams_on_one_connection_flow_beside_one_that_nobody_reads(
    proxies: dict[str, Balancer], client: Http2Client, name: str
) -> None:
    address, history = proxies[name].secure_address, History()
    await until_served(address, client.send)

    async def opened(letters: int, max_tokens: int) -> Reader:
        reader = Reader(address, history, send=client.send)
        truth = numbered(fresh_word(letters), length=100_000, max_tokens=max_tokens)
        await reader.open(truth, resumable=False, max_tokens=max_tokens)
        return reader

    slow = await opened(WIDE, 60)
    unread = slow.request
    assert isinstance(unread, Http2Request)
    slow.stop_reading()
    others = await asyncio.gather(*(opened(0, 100) for _ in range(NUM_STREAMS)))
    await asyncio.wait_for(unread.full.wait(), 60)
    seen = slow.cursor
    await asyncio.gather(*(other.got(other.cursor + 10) for other in others))
    assert slow.cursor == seen
    assert not unread.ended.done()
    slow.read_on()
    assert [await reader.closed() for reader in (slow, *others)] == ["whole"] * (1 + NUM_STREAMS)
    assert judge(history).holds
    assert client.num_connections == 1


# --- a client that takes a request back


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", PROGRAMS)
async def test_an_answer_that_its_client_takes_back_ends_at_the_replica(
    steady: RunningServer,
    proxies: dict[str, Balancer],
    client: Http2Client,
    name: str,
    streamed: bool,
) -> None:
    address = proxies[name].secure_address
    await until_served(address, client.send)
    now = Scrape(steady)
    gone = now("penstock_streams_ended_total", cause="client_gone")
    started = now("penstock_streams_started_total")
    stays = Reader(address, History(), send=client.send)
    await stays.open(endless(), resumable=False, max_tokens=100_000)
    asked = json.dumps({"prompt": "Hello", "max_tokens": 100_000, "stream": streamed}).encode()
    request = request_bytes("POST", "/generate", body=asked)
    answer = await client.send(address, request, lambda _: None)
    await asyncio.to_thread(
        scrape_until, steady, lambda now: now("penstock_streams_started_total") == started + 2
    )
    answer.leave()

    def has_ended(now: Scrape) -> bool:
        return now("penstock_streams_ended_total", cause="client_gone") == gone + 1

    await asyncio.to_thread(scrape_until, steady, has_ended)
    await stays.got(stays.cursor + 3)  # the connection's other stream goes on
    assert client.num_connections == 1
    stays.leave()
    await asyncio.to_thread(
        scrape_until,
        steady,
        lambda now: now("penstock_streams_ended_total", cause="client_gone") == gone + 2,
    )


# --- refusals


class Refusing:
    """Replicas that are ready, and refuse every POST with the same response."""

    def __init__(self) -> None:
        self.refusal = b""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            await reader.readexactly(length)
            writer.write(self.refusal if head.startswith(b"POST") else READY)
            await writer.drain()


async def test_a_refusal_reaches_the_client_as_the_replica_sent_it(
    tmp_path: Path, client: Http2Client
) -> None:
    """nginx has tried all replicas when the last one's 503 comes."""
    refusing, body = Refusing(), b'{"code": "queue_full", "error": "Full."}'
    async with (
        tcp_servers(3, refusing.answer) as ports,
        in_a_thread(balancers(PROGRAMS, tmp_path, ports)) as running,
    ):
        for name, proxy in running.items():
            await until_served(proxy.secure_address, client.send)
            for status in (429, 503):
                lines = [
                    f"HTTP/1.1 {status} Refused",
                    "Content-Type: application/json",
                    "Retry-After: 7",
                    f"Content-Length: {len(body)}",
                ]
                refusing.refusal = "\r\n".join([*lines, "", ""]).encode() + body
                asked = request_bytes("POST", "/generate", body=b'{"prompt": "Hello"}')
                head, got = await fetch(proxy.secure_address, asked, send=client.send)
                assert (name, head.status, got) == (name, status, body)
                assert head.headers["retry-after"] == "7"


# --- TLS


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until its socket is closed."""
    writer.close()
    with contextlib.suppress(OSError):  # the balancer may have been first
        await writer.wait_closed()


@pytest.mark.parametrize("name", PROGRAMS)
async def test_plain_http_at_the_port_for_tls_is_refused_and_not_redirected(
    steady: RunningServer, proxies: dict[str, Balancer], name: str
) -> None:
    num_asked = len(steady.output)
    reader, writer = await asyncio.open_connection(*proxies[name].secure_address)
    writer.write(request_bytes("GET", "/v1/models", "Connection: close"))
    said = b""
    with contextlib.suppress(ConnectionResetError):
        said = await asyncio.wait_for(reader.read(), 30)
    await closed(writer)
    # HAProxy and Envoy close the connection; nginx and Caddy say what is wrong.
    assert b" 400 " in said.split(b"\r\n")[0] or not said.startswith(b"HTTP/"), said
    assert not [line for line in steady.output[num_asked:] if " route=/v1/models " in line]


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_renewed_certificate_is_served_and_open_streams_go_on(
    steady: RunningServer, proxies: dict[str, Balancer], client: Http2Client, name: str
) -> None:
    proxy, history = proxies[name], History()
    await until_served(proxy.secure_address, client.send)
    gone = Scrape(steady)("penstock_streams_ended_total", cause="client_gone")
    reader = Reader(proxy.secure_address, history, send=client.send)
    await reader.open(endless(), resumable=False, max_tokens=100_000)
    await reader.got(3)
    before = await served_certificate(proxy.secure_address)
    await asyncio.to_thread(proxy.renew)
    await until_another_certificate(proxy.secure_address, before)
    await reader.got(reader.cursor + 3)
    assert not reader.is_over
    reader.leave()
    await asyncio.to_thread(  # the next test counts the streams that end
        scrape_until,
        steady,
        lambda now: now("penstock_streams_ended_total", cause="client_gone") == gone + 1,
    )


async def until_another_certificate(address: Address, old: bytes) -> None:
    async with asyncio.timeout(30):
        while True:
            if await served_certificate(address) != old:
                return
            await asyncio.sleep(0.05)


async def served_certificate(address: Address) -> bytes:
    """Return the certificate that a new connection gets."""
    _, writer = await asyncio.open_connection(*address, ssl=trusting("http/1.1"))
    secured = writer.get_extra_info("ssl_object")
    assert isinstance(secured, ssl.SSLObject)
    certificate = secured.getpeercert(binary_form=True)
    await closed(writer)
    assert certificate is not None
    return certificate


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_client_without_http2_keeps_its_connection_over_tls(
    proxies: dict[str, Balancer], client: Http2Client, name: str
) -> None:
    address = proxies[name].secure_address
    await until_served(address, client.send)
    reader, writer = await asyncio.open_connection(*address, ssl=trusting("http/1.1"))
    for _ in range(3):
        writer.write(request_bytes("GET", "/health/ready"))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    await closed(writer)
