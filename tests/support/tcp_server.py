"""A TCP server on asyncio's streams that leaves no connection behind.

asyncio's own server forgets a connection that it accepts while it closes, and it leaves open what
its tasks leave open. The garbage collector finds such a socket later, and the test that runs then
fails in place of the one that left it.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

from tests.support.raw import reset_on_close

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
# So many turns of the loop take a connection from `accept` to its task.
TURNS = 5


class TcpServer:
    """Answers each connection with `answer`, which may end by an error of the connection."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def open(
        self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> tuple[str, int]:
        """Accept connections, and return the address. Port 0 stands for any that is free."""
        self._server = await asyncio.start_server(self._serve, host, port, backlog=4096, ssl=tls)
        bound: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return bound

    async def refuse(self) -> None:
        """Accept no more connections; keep those that are open."""
        server, self._server = self._server, None
        if server is None:
            return
        for each in server.sockets:
            asyncio.get_running_loop().remove_reader(each.fileno())
        await _let_the_loop_turn()  # what was accepted gets its task
        server.close()

    async def drop(self) -> None:
        """Cut every open connection by RST, and wait until its task has ended."""
        connections = dict(self._connections)
        for task, writer in connections.items():
            if (raw := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):  # it may be closed
                    reset_on_close(raw)
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await _let_the_loop_turn()  # it closes the sockets now

    async def close(self) -> None:
        """Accept no more connections, and cut those that are open."""
        await self.refuse()
        await self.drop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side may leave at any time, and so may the test
        finally:
            writer.close()
            del self._connections[task]


async def _let_the_loop_turn() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def tcp_server(answer: Answer) -> AsyncIterator[tuple[str, int]]:
    """Run a server at a free port of 127.0.0.1."""
    server = TcpServer(answer)
    address = await server.open()
    try:
        yield address
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def tcp_servers(count: int, answer: Answer) -> AsyncIterator[list[int]]:
    """Run several at once, and yield their ports."""
    async with contextlib.AsyncExitStack() as stack:
        yield [(await stack.enter_async_context(tcp_server(answer)))[1] for _ in range(count)]
