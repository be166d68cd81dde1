"""Engines that cost nothing, to measure what the server costs. Loaded by their import strings.

They compute nothing and keep a core of their own, the client's. `Stepped` gives every stream one
token when it is told to, by a datagram on `socket`: the client sends one when it has received all
of the step before. `Free` gives every stream a token in each turn of its loop, from the first
datagram on. `Paced` gives every stream `rate` tokens a second, each of which is the time at which
it was pushed (`time.monotonic_ns`), all streams out of phase; the first one at once if it is
`eager`.
"""

import asyncio
import os
import socket
import time

from penstock.engine.protocol import ModelInfo, Sink
from penstock.request import Request


class _Costless:
    """What both share: every request has a slot at once."""

    def __init__(self, *, name: str, core: int = -1) -> None:
        if core >= 0:
            os.sched_setaffinity(0, {core})
        self._info = ModelInfo(name, "benchmark", 1_000_000, 0)
        self._sinks: dict[str, tuple[Sink, int]] = {}

    async def stop(self) -> None:
        """Nothing to give back."""

    def submit(self, request: Request, sink: Sink) -> None:
        """A slot at once."""
        sink.accepted((0,))
        sink.started()
        self._sinks[request.id] = (sink, request.max_tokens)

    def cancel(self, request_id: str) -> None:
        """No more tokens."""
        self._sinks.pop(request_id, None)


class Stepped(_Costless):
    """One token for every stream at each datagram."""

    def __init__(self, *, name: str, socket: str, core: int = -1) -> None:
        super().__init__(name=name, core=core)
        self._path = socket
        self._token = 0

    async def start(self) -> ModelInfo:
        """Listen for datagrams."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._step)
        return self._info

    def _step(self) -> None:
        self._socket.recv(16)
        self._give()

    def _give(self) -> None:
        self._token += 1
        token = self._token
        for request_id, (sink, left) in list(self._sinks.items()):
            sink.delta(" token", 1, (token,))
            if left == 1:
                del self._sinks[request_id]
                sink.finish("length", 1)
            else:
                self._sinks[request_id] = (sink, left - 1)


class Free(Stepped):
    """As many tokens as it can make, from the first datagram on."""

    def _step(self) -> None:
        super()._step()
        self._go_on()

    def _go_on(self) -> None:
        if self._sinks:
            self._give()
            asyncio.get_running_loop().call_soon(self._go_on)


class Paced(_Costless):
    """`rate` tokens a second for every stream."""

    def __init__(self, *, name: str, rate: float, eager: bool = False, core: int = -1) -> None:
        super().__init__(name=name, core=core)
        self._interval = 1 / rate
        self._eager = eager
        self._phase = 0

    async def start(self) -> ModelInfo:
        """Nothing to load."""
        return self._info

    def submit(self, request: Request, sink: Sink) -> None:
        """Begin somewhere within the interval: the golden ratio spreads any number of streams."""
        super().submit(request, sink)
        loop = asyncio.get_running_loop()
        if self._eager:
            self._next(request.id, loop.time())
            return
        self._phase += 1
        at = loop.time() + self._interval * (self._phase * 0.618 % 1)
        loop.call_at(at, self._next, request.id, at)

    def _next(self, request_id: str, at: float) -> None:
        if request_id not in self._sinks:
            return
        sink, left = self._sinks[request_id]
        sink.delta(f" {time.monotonic_ns()}", 1, (left,))
        if left == 1:
            del self._sinks[request_id]
            sink.finish("length", 1)
            return
        self._sinks[request_id] = (sink, left - 1)
        at += self._interval
        asyncio.get_running_loop().call_at(at, self._next, request_id, at)
