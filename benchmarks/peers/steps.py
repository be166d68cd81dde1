"""An engine that costs nothing, in the server's own process: a token for every stream at each step.

A step is a datagram on a socket: the client sends one when it has received all of the step before.
This is the best case for a server whose engine is in its process: no batch to read, nothing parsed.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable

TOKEN = " token"


class Steps:
    """Wakes whoever waits for the next step."""

    def __init__(self, path: str) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._step)

    def call_next(self, then: Callable[[], None]) -> None:
        """At the next step."""
        self._waiting.append(then)

    async def next(self) -> None:
        """Until the next step: one future, the least that a coroutine can wait for."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():  # its stream has not been left
                future.set_result(None)

        self._waiting.append(wake)
        await future

    async def tokens(self, max_tokens: int) -> AsyncIterator[str]:
        """A generator of tokens, as engines in Python are."""
        for _ in range(max_tokens):
            await self.next()
            yield TOKEN

    def _step(self) -> None:
        self._socket.recv(16)
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()


def listener() -> socket.socket:
    """A listening socket on a free port."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    made.listen(4096)
    return made


def announce(port: int, **versions: str) -> None:
    """Tell whoever started this process that it listens, and nothing more: nobody reads on."""
    print(json.dumps({"port": port, "versions": versions}), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
