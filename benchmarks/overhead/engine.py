"""Zero-cost engines, so that only the server is measured. Loaded by their import strings.

They compute nothing, and run on the client's core. `Stepped` gives every stream one token for each
datagram on `socket`; the client sends a datagram when it has received all tokens of the step
before. `Free` gives every stream a token in each turn of its loop, from the first datagram on.
`Paced` gives every stream `rate` tokens per second. Each token is the time at which it was pushed
(`time.monotonic_ns`). The streams are out of phase. If an engine is `eager`, the first token of
each stream comes at once. `Ticking` gives tokens at a steady rate, like `Paced`, but with one timer
for many streams, so it can have thousands of them.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable

from penstock.engine.protocol import ModelInfo, Sink
from penstock.request import Request

NUM_GROUPS = 10  # of `Ticking`


class _ZeroCostEngine:
    """An engine that gives every request a slot at once and computes nothing."""

    def __init__(self, *, name: str, core: int = -1) -> None:
        if core >= 0:
            os.sched_setaffinity(0, {core})
        self._info = ModelInfo(name, "benchmark", 1_000_000, 0)
        self._sinks: dict[str, tuple[Sink, int]] = {}

    async def stop(self) -> None:
        """Do nothing: this engine holds no resources."""

    def submit(self, request: Request, sink: Sink) -> None:
        """Start a request at once."""
        sink.accepted((0,))
        sink.started()
        self._sinks[request.id] = (sink, request.max_tokens)

    def cancel(self, request_id: str, stopped: Callable[[], None]) -> None:
        """Stop a request's tokens."""
        self._sinks.pop(request_id, None)
        stopped()

    async def check(self, *, tries: bool) -> None:
        """Return: there is nothing that could hang."""


class Stepped(_ZeroCostEngine):
    """An engine that gives every stream one token for each datagram."""

    def __init__(self, *, name: str, socket: str, eager: bool = False, core: int = -1) -> None:
        super().__init__(name=name, core=core)
        self._path = socket
        self._eager = eager
        self._token = 0

    async def start(self) -> ModelInfo:
        """Listen for datagrams."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._step)
        return self._info

    def submit(self, request: Request, sink: Sink) -> None:
        """Start a request, with its first token if the engine is eager."""
        super().submit(request, sink)
        if self._eager:
            self._give([request.id])

    def _step(self) -> None:
        self._socket.recv(16)
        self._give(list(self._sinks))

    def _give(self, request_ids: list[str]) -> None:
        self._token += 1
        token = self._token
        for request_id in request_ids:
            sink, left = self._sinks[request_id]
            sink.delta(" token", 1, (token,))
            if left == 1:
                del self._sinks[request_id]
                sink.finish("length", 1)
            else:
                self._sinks[request_id] = (sink, left - 1)


class Free(Stepped):
    """An engine that makes tokens as fast as it can, from the first datagram on."""

    def _step(self) -> None:
        super()._step()
        self._go_on()

    def _go_on(self) -> None:
        if self._sinks:
            self._give(list(self._sinks))
            asyncio.get_running_loop().call_soon(self._go_on)


class Paced(_ZeroCostEngine):
    """An engine that gives every stream `rate` tokens per second."""

    def __init__(self, *, name: str, rate: float, eager: bool = False, core: int = -1) -> None:
        super().__init__(name=name, core=core)
        self._interval = 1 / rate
        self._eager = eager
        self._phase = 0

    async def start(self) -> ModelInfo:
        """Return the model at once: there is nothing to load."""
        return self._info

    def submit(self, request: Request, sink: Sink) -> None:
        """Start a request out of phase: the golden ratio spreads streams over the interval."""
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


class Ticking(_ZeroCostEngine):
    """An engine that gives every stream `rate` tokens per second, a tenth of the streams at once.

    With `groups` 1, all streams get their tokens at once, in one step. `rate` 0 gives no tokens.
    """

    def __init__(self, *, name: str, rate: float, core: int = -1, groups: int = NUM_GROUPS) -> None:
        super().__init__(name=name, core=core)
        self._rate = rate
        self._groups: list[dict[str, tuple[Sink, int]]] = [{} for _ in range(groups)]
        self._num_submitted = 0

    async def start(self) -> ModelInfo:
        """Begin to tick."""
        if self._rate:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._tick, loop.time(), 0)
        return self._info

    def submit(self, request: Request, sink: Sink) -> None:
        """Start a request in the next group."""
        sink.accepted((0,))
        sink.started()
        group = self._groups[self._num_submitted % len(self._groups)]
        self._num_submitted += 1
        group[request.id] = (sink, request.max_tokens)

    def cancel(self, request_id: str, stopped: Callable[[], None]) -> None:
        """Stop a request's tokens."""
        for group in self._groups:
            group.pop(request_id, None)
        stopped()

    def _tick(self, at: float, number: int) -> None:
        group = self._groups[number % len(self._groups)]
        for request_id, (sink, left) in list(group.items()):
            sink.delta(" token", 1, (left,))
            if left == 1:
                del group[request_id]
                sink.finish("length", 1)
            else:
                group[request_id] = (sink, left - 1)
        at += 1 / (self._rate * len(self._groups))
        asyncio.get_running_loop().call_at(at, self._tick, at, number + 1)
