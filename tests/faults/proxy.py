"""A TCP proxy that does what networks do: delays, dribbles, cuts, resets, goes silent.

In: connections, and for each of them the faults of both directions. Out: the same bytes, as far as
the faults let them through. Not known here: HTTP, streams.

A fault is a link in a chain: it is given where bytes go next (`Push`) and returns where they go
first. `b""` is the end of the bytes, and travels the chain like them. The bytes before a cut are
always delivered before it.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Address = tuple[str, int]
Push = Callable[[bytes], Awaitable[None]]
Fault = Callable[[Push], Push]
CloseKind = Literal["FIN", "RST"]
CLOSES: tuple[CloseKind, ...] = ("FIN", "RST")

READ_BYTES = 65536


class CutError(Exception):
    """Raised by a fault: the whole connection ends here, on both sides."""

    def __init__(self, how: CloseKind) -> None:
        self.how = how


def latency(seconds: float, jitter: float = 0.0, chance: random.Random | None = None) -> Fault:
    """Each piece comes `seconds` later, give or take up to `jitter`; order is kept."""

    def link(push: Push) -> Push:
        async def delayed(data: bytes) -> None:
            offset = chance.uniform(-jitter, jitter) if chance is not None else 0.0
            await asyncio.sleep(max(0.0, seconds + offset))
            await push(data)

        return delayed

    return link


def bandwidth(bytes_per_second: float) -> Fault:
    """No more than this comes through: a tenth of a second's worth at a time."""
    share = max(1, int(bytes_per_second / 10))

    def link(push: Push) -> Push:
        async def throttled(data: bytes) -> None:
            for start in range(0, len(data), share):
                piece = data[start : start + share]
                await asyncio.sleep(len(piece) / bytes_per_second)
                await push(piece)
            if not data:
                await push(data)

        return throttled

    return link


def slices(size: int) -> Fault:
    """Comes in pieces of `size` bytes; the other side reads each on its own if it is quick."""

    def link(push: Push) -> Push:
        async def sliced(data: bytes) -> None:
            for start in range(0, len(data), size):
                await push(data[start : start + size])
                await asyncio.sleep(0)  # the piece is on its way before the next is written
            if not data:
                await push(data)

        return sliced

    return link


def cut(after: int, how: CloseKind = "FIN") -> Fault:
    """The connection ends when exactly `after` bytes have come through."""

    def link(push: Push) -> Push:
        left = after

        async def cutting(data: bytes) -> None:
            nonlocal left
            if len(data) < left or not data:
                left -= len(data)
                await push(data)
                return
            if left:
                await push(data[:left])
            raise CutError(how)

        return cutting

    return link


def reset(after: int) -> Fault:
    """As `cut`, by RST."""
    return cut(after, "RST")


def black_hole(after: int = 0) -> Fault:
    """After so many bytes the rest is taken and lost, the end too: silence, with nothing closed."""

    def link(push: Push) -> Push:
        left = after

        async def swallowing(data: bytes) -> None:
            nonlocal left
            through, left = data[:left], max(0, left - len(data))
            if through:
                await push(through)

        return swallowing

    return link


def stall(after: int = 0) -> Fault:
    """After so many bytes nothing more is taken: the sender's buffers fill up."""

    def link(push: Push) -> Push:
        left = after

        async def stalling(data: bytes) -> None:
            nonlocal left
            through, left = data[:left], max(0, left - len(data))
            if through:
                await push(through)
            if not left:
                await asyncio.Event().wait()

        return stalling

    return link


def slow_close(seconds: float) -> Fault:
    """The end comes `seconds` after the last byte."""

    def link(push: Push) -> Push:
        async def closing(data: bytes) -> None:
            if not data:
                await asyncio.sleep(seconds)
            await push(data)

        return closing

    return link


def sometimes(chance: random.Random, probability: float, fault: Fault) -> list[Fault]:
    """This fault, or none, as chance has it."""
    return [fault] if chance.random() < probability else []


@dataclass(frozen=True)
class Faults:
    """What befalls one connection: its way `up` to the server, and `down` to the client."""

    up: Sequence[Fault] = ()
    down: Sequence[Fault] = ()


FaultsOf = Callable[[random.Random], Faults]
"""Decides a connection's faults. Its chance depends on the proxy's seed and the connection's number
alone."""


def none(chance: random.Random) -> Faults:
    """No faults at all."""
    return Faults()


class Proxy:
    """Listens on a loopback port and connects whoever comes to `target`.

        async with Proxy(target, faults_of) as proxy: ... proxy.address

    `faults_of` may be replaced at any time; it counts for the connections that come after.
    """

    def __init__(self, target: Address, faults_of: FaultsOf = none, *, seed: int = 0) -> None:
        self.target = target
        self.faults_of = faults_of
        self.num_connections = 0
        self.num_cuts = 0
        self._seed = seed
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> Address:
        """Where clients go: the same for the proxy's whole life."""
        return ("127.0.0.1", self._port)

    async def __aenter__(self) -> "Proxy":
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()
        await self.drop()

    async def up(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self._port, backlog=4096
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Refuse connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def drop(self) -> None:
        """Cut every open connection by RST."""
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(
        self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.num_connections += 1
        faults = self.faults_of(random.Random(f"{self._seed}/{self.num_connections}"))
        writers = [client]
        how: CloseKind = "FIN"
        try:
            server_reader, server = await asyncio.open_connection(*self.target)
            writers.append(server)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_carry(client_reader, _chain(faults.up, server)))
                ways.create_task(_carry(server_reader, _chain(faults.down, client)))
        except* CutError as cuts:
            first = cuts.exceptions[0]
            how = first.how if isinstance(first, CutError) else "RST"
            self.num_cuts += 1
        except* (OSError, asyncio.CancelledError):
            how = "RST"
        finally:
            self._connections.discard(task)
            for writer in writers:
                _close(writer, how)


def _chain(faults: Sequence[Fault], writer: asyncio.StreamWriter) -> Push:
    writer.transport.set_write_buffer_limits(0)  # `drain` waits until the kernel has everything

    async def write(data: bytes) -> None:
        if data:
            writer.write(data)
            await writer.drain()
        elif writer.can_write_eof():
            writer.write_eof()

    push: Push = write
    for fault in reversed(faults):
        push = fault(push)
    return push


async def _carry(reader: asyncio.StreamReader, push: Push) -> None:
    while data := await reader.read(READ_BYTES):
        await push(data)
    await push(b"")


def _close(writer: asyncio.StreamWriter, how: CloseKind) -> None:
    if how == "RST":
        linger = struct.pack("ii", 1, 0)
        if (raw := writer.get_extra_info("socket")) is not None:  # it is closed already, else
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()


@contextlib.contextmanager
def proxy_in_a_thread(
    target: Address, faults_of: FaultsOf = none, *, seed: int = 0
) -> Iterator[Proxy]:
    """A proxy for a test that has no event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault-proxy")
    thread.start()
    proxy = Proxy(target, faults_of, seed=seed)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.asynccontextmanager
async def proxied(
    target: Address, *, up: Sequence[Fault] = (), down: Sequence[Fault] = ()
) -> AsyncIterator[Proxy]:
    """A proxy with the same faults for every connection."""
    async with Proxy(target, lambda _: Faults(up, down)) as proxy:
        yield proxy
