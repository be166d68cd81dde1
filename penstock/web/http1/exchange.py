"""One request on a connection, and its response: one object for their whole life.

It is both ASGI's `receive` and `send`, for routes, and a `Peer`, for streams. A streamed response
needs no task: once its head is sent, everything goes through plain calls.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Scope

from penstock.web.http1 import half_closed, response
from penstock.web.peer import Listener

if TYPE_CHECKING:
    from penstock.web.http1.connection import Connection

# More of a body than this waits in the kernel until the application takes what it has.
MAX_BODY_AHEAD = 64 * 1024
# At most this many requests start in a turn of the event loop, so that a burst of requests does not
# stop the streams.
MAX_STARTING = 32


class Exchange:
    """One request and its response on `connection`."""

    holds_task = False

    __slots__ = (
        "_body",
        "_connection",
        "_expects_continue",
        "_go_on",
        "_has_begun",
        "_has_told_body",
        "_has_version",
        "_is_1_1",
        "_is_body_broken",
        "_is_chunked",
        "_is_head",
        "_listener",
        "_status",
        "_task",
        "_waiter",
        "_written_to_end",
        "descriptor",
        "has_whole_body",
        "is_gone",
        "is_over",
        "keep_alive",
        "num_body_bytes",
    )

    def __init__(
        self,
        connection: "Connection",
        *,
        is_1_1: bool,
        is_head: bool,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self._connection = connection
        self.descriptor = -1
        """The socket for straight writes (see `Peer`)."""
        self._is_1_1 = is_1_1
        self._is_head = is_head
        self._expects_continue = expects_continue
        self.keep_alive = keep_alive
        """True if the connection stays open after the response."""
        self._body: list[bytes] | None = None
        self.num_body_bytes = 0
        """The bytes of the body that the application has not taken."""
        self.has_whole_body = False
        self._has_told_body = False
        self._is_body_broken = False
        self.is_gone = False
        """True once the client has disconnected."""
        self.is_over = False
        """True once the response has ended."""
        self._status: tuple[int, Any] | None = None
        """The status and headers of the response until they are written, with the first piece of
        the body."""
        self._has_begun = False
        self._has_version = False
        """True if the beginning of the head was written before the rest was known."""
        self._is_chunked = False
        self._written_to_end = False
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._go_on: Callable[[], None] | None = None
        self._listener: Listener | None = None

    def begin(self, app: ASGIApp, scope: Scope) -> None:
        """Answer the request in a task: now, or after requests that came before it."""
        server = self._connection.server
        if server.num_starting >= MAX_STARTING:
            server.to_start.append((self, scope))
            return
        server.num_starting += 1
        self._task = asyncio.get_running_loop().create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        server = self._connection.server
        server.num_starting -= 1
        if server.to_start:  # the server is behind: clients may have left meanwhile
            server.start_next()
            if self._connection.state == half_closed.CLOSED:
                self.abort()
        if self.is_gone:
            return
        try:
            await app(scope, self.receive, self.send)
        except Exception:  # the application has logged it
            self.abort()
        finally:
            self._task = None

    # The request's body.

    def feed(self, data: bytes) -> None:
        """Add a piece of the body."""
        self._expects_continue = False
        if self._body is None:
            self._body = [data]
        else:
            self._body.append(data)
        self.num_body_bytes += len(data)
        self._wake()

    def end_body(self) -> None:
        """Note that the body is complete."""
        self.has_whole_body = True
        self._wake()

    def break_body(self) -> None:
        """Note that the rest of the body never comes, or cannot be read. There is an answer."""
        self._is_body_broken = True
        self.keep_alive = False
        self._wake()

    async def receive(self) -> Message:
        """Return the next piece of the body, or that the client has disconnected (ASGI)."""
        while True:
            if self.is_gone or self.is_over or self._is_body_broken:
                return {"type": "http.disconnect"}
            if self._body or (self.has_whole_body and not self._has_told_body):
                return self._take_body()
            if self._expects_continue:
                self._expects_continue = False
                if not (self._has_begun or self._has_version):
                    self._connection.write(response.CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _take_body(self) -> Message:
        body = b"".join(self._body or ())
        self._body = None
        if self.num_body_bytes > MAX_BODY_AHEAD:
            self._connection.body_taken()
        self.num_body_bytes = 0
        self._has_told_body = self.has_whole_body
        return {"type": "http.request", "body": body, "more_body": not self.has_whole_body}

    def take_whole_body(self) -> bytes | None:
        """Return the body if all of it is here, otherwise None."""
        if not self.has_whole_body or self._has_told_body:
            return None
        body: bytes = self._take_body()["body"]
        return body

    # The response.

    async def send(self, message: Message) -> None:
        """Write a part of the response (ASGI)."""
        if message["type"] == "http.response.start":
            self._status = message["status"], message["headers"]
            return
        data = message.get("body", b"")
        is_last = not message.get("more_body", False)
        if self._write(data, is_last, len(data) if is_last else None) or self.is_gone:
            return
        waiter = asyncio.get_running_loop().create_future()

        def go_on() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._go_on = go_on
        self._connection.limit_write()
        await waiter

    def write(self, data: bytes, is_last: bool) -> bool:
        """Write part of the body (see `Peer`)."""
        return self._write(data, is_last, None)

    def _write(self, data: bytes, is_last: bool, length: int | None) -> bool:
        """Write part of the body. `length` is the whole body's length, if it is known."""
        if self.is_gone:
            return True  # nobody is told anything any more
        head = b"" if self._status is None else self._begin(length)
        data = head + self._framed(data, is_last)
        self._written_to_end = is_last
        was_taken = self._connection.write(data)
        if not was_taken:
            self.descriptor = -1
        elif is_last:
            self._end()
        elif self._is_chunked and not self._is_head:
            self.descriptor = self._connection.descriptor
        return was_taken

    def write_rest(self, data: bytes) -> bool:
        """Write bytes that the kernel did not take from the descriptor (see `Peer`)."""
        was_taken = self._connection.write_rest(data)
        if not was_taken:
            self.descriptor = -1
        return was_taken

    def _framed(self, data: bytes, is_last: bool) -> bytes:
        """Return a piece of the body as it is written."""
        if self._is_head:
            return b""
        if not self._is_chunked:
            return data
        framed = response.chunk(data)
        return framed + response.LAST_CHUNK if is_last else framed

    def _begin(self, length: int | None) -> bytes:
        """Return the head, which decides how the body is framed."""
        assert self._status is not None
        (status, headers), self._status = self._status, None
        self._has_begun = True
        head, self._is_chunked, self.keep_alive = response.head(
            status,
            headers,
            self._connection.date,
            is_1_1=self._is_1_1,
            keep_alive=(
                self.keep_alive and self.has_whole_body and not self._connection.is_closing
            ),
            length=length,
        )
        return head.removeprefix(response.VERSION) if self._has_version else head

    def tell(self, listener: Listener | None) -> None:
        """Tell this listener what the client does (see `Peer`)."""
        self._listener = listener
        if self.is_gone and listener is not None:
            listener.client_gone()

    def abort(self) -> None:
        """Cut the connection (see `Peer`)."""
        if not self.is_over:
            self._connection.abort()

    @property
    def has_begun(self) -> bool:
        """True if a part of the response was written."""
        return self._has_begun

    def probe(self) -> None:
        """Write something that is right in any case, to learn whether the client is still there.

        Before a response, that is how every head begins. Within a stream, its writer knows.
        """
        if self._has_begun:
            if self._listener is not None:
                self._listener.client_may_be_gone()
        elif not self._has_version:
            self._has_version = True
            self._connection.write(response.VERSION)

    # Reports of the connection.

    def taken(self) -> None:
        """Note that the kernel took everything that waited."""
        listener, go_on = self._listener, self._go_on
        if self._written_to_end and not self.is_over:
            self._end()
        elif self._is_chunked and not self._is_head:
            self.descriptor = self._connection.descriptor
        if go_on is not None:
            go_on()
        if listener is not None:
            listener.client_took()

    def gone(self) -> None:
        """Note that the client has disconnected."""
        if self.is_gone or self.is_over:
            return
        self.is_gone = True
        self.descriptor = -1
        self._wake()
        if self._go_on is not None:
            self._go_on()
        if self._listener is not None:
            self._listener.client_gone()
        elif self._task is not None and self._has_told_body and not self._has_begun:
            self._task.cancel()  # it waits for something that nobody needs any more

    def _end(self) -> None:
        self.is_over = True
        self.descriptor = -1
        self._body = None
        self._listener = None
        self._wake()
        self._connection.answered(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
