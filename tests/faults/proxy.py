"""A TCP proxy with the faults of networks: delay, fragments, cuts, resets, silence.

In: connections, and the faults of both directions of each. Out: the bytes that the faults let
through. It knows nothing about HTTP and streams.

A fault is a link in a chain: it takes the next link (`Push`) and returns its own. `b""` marks the
end of the bytes and travels the chain like them. Bytes before a cut are always delivered.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.support.ports import free_port
from tests.support.raw import reset_on_close
from tests.support.tcp_server import TcpServer

Address = tuple[str, int]
Push = Callable[[bytes], Awaitable[None]]
Fault = Callable[[Push], Push]
CloseKind = Literal["FIN", "RST"]
CLOSES: tuple[CloseKind, ...] = ("FIN", "RST")

READ_BYTES = 65536


class CutError(Exception):
    """Raised by a fault to end the whole connection, on both sides."""

    def __init__(self, how: CloseKind) -> None:
        self.how = how


def latency(seconds: float, jitter: float = 0.0, chance: random.Random | None = None) -> Fault:
    """Delay each piece by `seconds`, plus or minus up to `jitter` seconds; keep the order."""

    def link(push: Push) -> Push:
        async def delayed(data: bytes) -> None:
            offset = chance.uniform(-jitter, jitter) if chance is not None else 0.0
            await asyncio.sleep(max(0.0, seconds + offset))
            await push(data)

        return delayed

    return link


def bandwidth(bytes_per_second: float) -> Fault:
    """Limit the rate, passing a tenth of a second's worth at a time."""
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
    """Split into pieces of `size` bytes; a quick receiver reads each piece separately."""

    def link(push: Push) -> Push:
        async def sliced(data: bytes) -> None:
            for start in range(0, len(data), size):
                await push(data[start : start + size])
                await asyncio.sleep(0)  # let this piece leave before the next is written
            if not data:
                await push(data)

        return sliced

    return link


def cut(after: int, how: CloseKind = "FIN") -> Fault:
    """End the connection after exactly `after` bytes."""

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
    """End the connection by RST after exactly `after` bytes."""
    return cut(after, "RST")


def black_hole(after: int = 0) -> Fault:
    """Lose everything after `after` bytes, the end included; close nothing."""

    def link(push: Push) -> Push:
        left = after

        async def swallowing(data: bytes) -> None:
            nonlocal left
            through, left = data[:left], max(0, left - len(data))
            if through:
                await push(through)

        return swallowing

    return link


def silence_from(silent: asyncio.Event) -> Fault:
    """Lose everything once `silent` is set, the end included; close nothing."""

    def link(push: Push) -> Push:
        async def swallowing(data: bytes) -> None:
            if not silent.is_set():
                await push(data)

        return swallowing

    return link


def stall(after: int = 0) -> Fault:
    """Stop reading after `after` bytes, so that the sender's buffers fill up."""

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
    """Delay the end by `seconds` after the last byte."""

    def link(push: Push) -> Push:
        async def closing(data: bytes) -> None:
            if not data:
                await asyncio.sleep(seconds)
            await push(data)

        return closing

    return link


def sometimes(chance: random.Random, probability: float, fault: Fault) -> list[Fault]:
    """Return this fault with the given probability, else no fault."""
    return [fault] if chance.random() < probability else []


@dataclass(frozen=True)
class Faults:
    """The faults of one connection, `up` to the server and `down` to the client."""

    up: Sequence[Fault] = ()
    down: Sequence[Fault] = ()


FaultsOf = Callable[[random.Random], Faults]
"""Chooses a connection's faults, by a random source that depends only on the proxy's seed and the
connection's number."""


def none(chance: random.Random) -> Faults:
    """Choose no faults."""
    return Faults()


class Proxy:
    """A proxy that listens on a loopback port and connects its clients to `target`.

        async with Proxy(target, faults_of) as proxy: ... proxy.address

    `faults_of` may be replaced at any time; the change applies to new connections.
    """

    def __init__(self, target: Address, faults_of: FaultsOf = none, *, seed: int = 0) -> None:
        self.target = target
        self.faults_of = faults_of
        self.num_connections = 0
        self.num_cuts = 0
        self._seed = seed
        self._port = free_port()
        self._server = TcpServer(self._carry_all)

    @property
    def address(self) -> Address:
        """The address for clients, which never changes."""
        return ("127.0.0.1", self._port)

    async def __aenter__(self) -> "Proxy":
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    async def up(self) -> None:
        """Accept connections."""
        await self._server.open(port=self._port)

    async def down(self) -> None:
        """Refuse new connections; keep the open ones."""
        await self._server.refuse()

    async def drop(self) -> None:
        """Cut every open connection by RST."""
        await self._server.drop()

    async def _carry_all(
        self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
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
            for writer in writers:
                _close(writer, how)


def _chain(faults: Sequence[Fault], writer: asyncio.StreamWriter) -> Push:
    writer.transport.set_write_buffer_limits(0)  # `drain` waits until the kernel has all bytes

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
        if (raw := writer.get_extra_info("socket")) is not None:  # None if it is already closed
            with contextlib.suppress(OSError):
                reset_on_close(raw)
        writer.transport.abort()
    else:
        writer.close()


@contextlib.contextmanager
def proxy_in_a_thread(
    target: Address, faults_of: FaultsOf = none, *, seed: int = 0
) -> Iterator[Proxy]:
    """Run a proxy in a thread, for a test without an event loop."""
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
    """Run a proxy with the same faults for every connection."""
    async with Proxy(target, lambda _: Faults(up, down)) as proxy:
        yield proxy
