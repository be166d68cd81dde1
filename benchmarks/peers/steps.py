"""A zero-cost engine in the server's own process: a token for every stream at each step.

A stream's first token comes at once. A step is a datagram on a socket. The client sends it when it
has received all tokens of the step before. This is the best case for a server with an engine in its
process: it has no batch to read and nothing to parse.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable

TOKEN = " token"


class Steps:
    """The steps of the engine: calls waiting callbacks and wakes waiting tasks at each step."""

    def __init__(self, path: str) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._step)

    def call_next(self, then: Callable[[], None]) -> None:
        """Call `then` at the next step."""
        self._waiting.append(then)

    async def next(self) -> None:
        """Wait for the next step, with a single future."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():  # false if the client has left the stream
                future.set_result(None)

        self._waiting.append(wake)
        await future

    async def tokens(self, max_tokens: int) -> AsyncIterator[str]:
        """Yield a token at each step, like the generator of a Python engine."""
        yield TOKEN
        for _ in range(max_tokens - 1):
            await self.next()
            yield TOKEN

    def _step(self) -> None:
        self._socket.recv(16)
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()


def listener() -> socket.socket:
    """Return a listening socket on a free port."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    made.listen(4096)
    return made


def announce(port: int, **versions: str) -> None:
    """Print the port and the versions for the parent, which then stops reading stdout."""
    print(json.dumps({"port": port, "versions": versions}), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
