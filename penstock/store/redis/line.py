"""The pipelined connection of the token's path: commands out, replies in their order.

In: commands as bytes, each batch with a receiver for its replies. Out: the replies. A pool of
connections would break the order of a log's entries, so there is exactly one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import hiredis

from penstock.store.redis.address import Address
from penstock.store.redis.layout import command

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 5.0

Reply = Any
"""bytes, an int, None, a list of replies, or a ReplyError."""


class ReplyError(Exception):
    """An error that the server replied. Its first word is the kind of error."""


class HangupError(ConnectionResetError):
    """The other side closed a connection that had been made, or does not speak Redis's protocol."""


class Batch(Protocol):
    """Receives the replies of commands that were sent together."""

    num_left: int
    """How many replies are to come. The line counts down."""
    takes_all: bool
    """Whether `take` gets every reply. If not, it gets all replies that are not bytes."""

    def take(self, reply: Reply) -> None:
        """Take a reply. `num_left` is already one less."""

    def done(self) -> None:
        """All replies have come."""


class One:
    """A batch of one command; its reply goes to a function."""

    takes_all = True

    def __init__(self, take: Callable[[Reply], None]) -> None:
        self.num_left = 1
        self.take = take

    def done(self) -> None:
        """Do nothing: `take` has done it."""


class Line(asyncio.Protocol):
    """One connection. `closed` is set when it is lost; `reason` says why."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.reason = ""
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._batches: deque[Batch] = deque()
        self._transport: asyncio.Transport | None = None

    def num_unsent_bytes(self) -> int:
        """Return how many bytes wait in this process."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, data: bytes, batch: Batch) -> None:
        """Write commands; their replies go to `batch`, whose `num_left` is not 0."""
        if self._transport is not None and not self.closed.is_set():
            self._batches.append(batch)
            self._transport.write(data)

    async def ask(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send commands and return their replies; errors are among them.

        Raises HangupError if the connection is lost before, TimeoutError after 5 s.
        """
        answers = _Answers(len(commands))
        if commands:
            self.send(b"".join(commands), answers)
            lost = asyncio.create_task(self.closed.wait())
            either: tuple[asyncio.Future[Any], ...] = (answers.all, lost)
            try:
                await asyncio.wait(
                    either, timeout=ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                lost.cancel()
            if self.closed.is_set() and not answers.all.done():
                raise HangupError(self.reason)
            if not answers.all.done():
                raise TimeoutError
        return answers.replies

    def close(self, reason: str) -> None:
        """Drop the connection at once. Later replies are ignored."""
        if not self.closed.is_set():
            self.reason = reason
            self.closed.set()
            self._batches.clear()
            if self._transport is not None:
                self._transport.abort()

    # asyncio's protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of its own kind

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        batches, gets = self._batches, self._reader.gets
        try:
            while batches and (reply := gets()) is not False:
                batch = batches[0]
                batch.num_left -= 1
                if type(reply) is not bytes or batch.takes_all:
                    batch.take(reply)
                if not batch.num_left and batches:
                    batches.popleft().done()
        except hiredis.ProtocolError:
            self.close("The store does not speak Redis's protocol.")

    def connection_lost(self, error: Exception | None) -> None:
        self.close("The connection to the store was lost.")


class _Answers:
    """Collects the replies of `Line.ask`."""

    takes_all = True

    def __init__(self, num: int) -> None:
        self.num_left = num
        self.replies: list[Reply] = []
        self.all: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, reply: Reply) -> None:
        self.replies.append(reply)

    def done(self) -> None:
        if not self.all.done():
            self.all.set_result(None)


async def connect(address: Address) -> Line:
    """Open a connection and log in. Raises OSError, TimeoutError, ReplyError."""
    loop = asyncio.get_running_loop()
    line = Line()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await loop.create_connection(
                lambda: line, address.host, address.port, ssl=address.tls_context()
            )
            await _log_in(line, address)
    except BaseException:
        line.close("")
        raise
    return line


async def _log_in(line: Line, address: Address) -> None:
    commands = []
    if address.username:
        commands.append(command("AUTH", address.username, address.password))
    elif address.password:
        commands.append(command("AUTH", address.password))
    if address.db:
        commands.append(command("SELECT", address.db))
    for reply in await line.ask(commands):
        if isinstance(reply, ReplyError):
            raise reply
