"""Each fault of the proxy does exactly what its name says."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator

import pytest

from tests.faults.proxy import (
    CLOSES,
    Address,
    CloseKind,
    Fault,
    Faults,
    Proxy,
    bandwidth,
    black_hole,
    cut,
    latency,
    proxied,
    proxy_in_a_thread,
    reset,
    slices,
    slow_close,
    sometimes,
    stall,
)
from tests.support.tcp_server import tcp_server

PATIENCE_S = 30.0
DATA = bytes(range(256)) * 8


class Target:
    """A server that sends `DATA` to each client and keeps what it receives."""

    def __init__(self) -> None:
        self.received = b""
        self.got_something = asyncio.Event()
        self.ended = asyncio.Event()
        self.was_reset = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(DATA)
        try:
            while data := await reader.read(65536):
                self.received += data
                self.got_something.set()
        except ConnectionError:
            self.was_reset = True
        self.ended.set()


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[Target, Address]]:
    target = Target()
    async with tcp_server(target.serve) as address, asyncio.timeout(PATIENCE_S):
        yield target, address


async def received_through(*down: Fault, count: int = len(DATA)) -> bytes:
    """Return the first `count` bytes that a client receives."""
    async with listening() as (_, address), proxied(address, down=down) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        try:
            return await reader.readexactly(count)
        finally:
            writer.close()


async def test_without_faults_every_byte_comes_through_both_ways_and_the_end_too() -> None:
    async with listening() as (target, address), proxied(address) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(DATA[::-1])
        assert await reader.readexactly(len(DATA)) == DATA
        writer.write_eof()
        assert await reader.read() == b""
        assert target.received == DATA[::-1]
        assert not target.was_reset
        writer.close()


@pytest.mark.parametrize("after", [0, 1, 255, 2047])
@pytest.mark.parametrize("how", CLOSES)
async def test_a_cut_comes_after_exactly_so_many_bytes(after: int, how: CloseKind) -> None:
    async with listening() as (target, address), proxied(address, down=[cut(after, how)]) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        if after:
            assert await reader.readexactly(after) == DATA[:after]
        if how == "RST":
            with pytest.raises(ConnectionResetError):
                await reader.read()
        else:
            assert await reader.read() == b""
        await target.ended.wait()
        assert target.was_reset == (how == "RST")
        assert proxy.num_cuts == 1
        writer.close()


async def test_a_cut_on_the_way_up_keeps_the_bytes_before_it() -> None:
    async with listening() as (target, address), proxied(address, up=[reset(7)]) as proxy:
        _, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"0123456789")
        await target.ended.wait()
        assert target.received == b"0123456"
        writer.close()


async def test_slices_arrive_one_by_one_and_whole() -> None:
    pieces: list[bytes] = []

    async def note(data: bytes) -> None:
        pieces.append(data)

    await slices(3)(note)(b"abcdefgh")
    assert pieces == [b"abc", b"def", b"gh"]
    assert await received_through(slices(1)) == DATA


async def test_latency_delays_and_keeps_the_order() -> None:
    began = time.monotonic()
    assert await received_through(latency(0.05, 0.02, random.Random(1))) == DATA
    assert time.monotonic() - began >= 0.03


async def test_bandwidth_is_kept() -> None:
    began = time.monotonic()
    assert await received_through(bandwidth(len(DATA) * 5)) == DATA
    assert time.monotonic() - began >= 0.19


async def test_faults_compose_in_order() -> None:
    assert await received_through(slices(5), latency(0), cut(12), count=12) == DATA[:12]


async def test_a_black_hole_goes_silent_and_closes_nothing() -> None:
    async with listening() as (target, address), proxied(address, down=[black_hole(10)]) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        assert await reader.readexactly(10) == DATA[:10]
        writer.write(b"still there?")
        await target.got_something.wait()  # the other direction is open
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)
        writer.close()


async def test_a_stall_takes_no_more_so_that_the_sender_has_to_wait() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await asyncio.wait_for(writer.drain(), 2)

    blocked = asyncio.Event()

    async def flood_until_blocked(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await flood(reader, writer)
        except TimeoutError:
            blocked.set()
            writer.transport.abort()

    async with (
        tcp_server(flood_until_blocked) as address,
        asyncio.timeout(PATIENCE_S),
        proxied(address, down=[stall(100)]) as proxy,
    ):
        reader, writer = await asyncio.open_connection(*proxy.address)
        assert await reader.readexactly(100) == bytes(100)
        await blocked.wait()
        writer.close()


async def test_a_slow_close_keeps_the_bytes_and_delays_the_end() -> None:
    async with listening() as (_, address), proxied(address, down=[slow_close(0.1)]) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.address)
        assert await reader.readexactly(len(DATA)) == DATA
        writer.write_eof()
        began = time.monotonic()
        assert await reader.read() == b""
        assert time.monotonic() - began >= 0.09
        writer.close()


async def test_down_refuses_and_up_takes_again_at_the_same_address() -> None:
    async with listening() as (_, address), proxied(address) as proxy:
        open_before, writer = await asyncio.open_connection(*proxy.address)
        assert await open_before.readexactly(1) == DATA[:1]
        await proxy.down()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*proxy.address)
        assert await open_before.readexactly(1) == DATA[1:2]
        await proxy.up()
        again, other = await asyncio.open_connection(*proxy.address)
        assert await again.readexactly(1) == DATA[:1]
        await proxy.drop()
        with pytest.raises(ConnectionResetError):
            await again.read()
        writer.close()
        other.close()


async def test_faults_depend_on_the_seed_and_the_connection_alone() -> None:
    def faults_of(chance: random.Random) -> Faults:
        drawn.append(chance.random())
        return Faults(down=sometimes(chance, 0.5, cut(1)))

    drawn: list[float] = []
    cuts = []
    async with listening() as (_, address):
        for seed in (1, 1, 2):
            async with Proxy(address, faults_of, seed=seed) as proxy:
                for _ in range(20):
                    reader, writer = await asyncio.open_connection(*proxy.address)
                    if await reader.read(2) == DATA[:1]:  # it is counted before it ends
                        assert await reader.read() == b""
                    writer.close()
                cuts.append(proxy.num_cuts)
    assert drawn[:20] == drawn[20:40] != drawn[40:]
    assert len(set(drawn[:20])) == 20
    assert 0 < cuts[0] == cuts[1] < 20


def test_the_proxy_serves_a_test_without_an_event_loop() -> None:
    faults = Faults(down=[cut(3)])
    with (
        socket.create_server(("127.0.0.1", 0)) as target,
        proxy_in_a_thread(target.getsockname(), lambda _: faults) as proxy,
        socket.create_connection(proxy.address, PATIENCE_S) as client,
    ):
        server, _ = target.accept()
        with server:
            server.sendall(b"abcdef")
            assert client.recv(6, socket.MSG_WAITALL) == b"abc"
