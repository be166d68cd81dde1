"""Sends a stream as an HTTP response: the last step of a token's way.

A reader and a framer come in. Each time the log grows, one write goes out with everything new.
Meanwhile the client is watched, and the reader is closed as soon as the client disconnects.
`liveness` keeps a reader from being silent or stuck for ever.

A response waits in one `await` for its end. Events are sent by plain calls, without waking a task:
waking one would cost more than everything else that a token needs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.observe.meter import Delivery
from penstock.stream.admission import Place
from penstock.stream.reader import Batch, Reader
from penstock.web.access import access_of
from penstock.web.liveness import Liveness
from penstock.web.writer import Writer

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # otherwise nginx holds the tokens back
]
HEARTBEAT = b": ping\n"
"""A comment, which every parser skips. It has no blank line of its own: after an event with an id,
some parsers (the OpenAI SDK's) would make an empty event of that."""

# Data for a client that does not read stays with us, not with the kernel. Pieces of this size show
# that a slow client does read.
MAX_WRITE_BYTES = 32 * 1024


class Framer(Protocol):
    """Turns a reader's events into the bytes of a response."""

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""


class ConnectedReader:
    """A reader that is closed when its client disconnects.

    The request's body must have been read before: `receive` is ASGI's, and from now on it only
    reports the disconnect.
    """

    def __init__(self, reader: Reader, receive: Receive) -> None:
        self.reader = reader
        self._watch = asyncio.create_task(self._close_on_disconnect(receive))

    def close(self) -> None:
        """Stop reading and watching. A second call does nothing."""
        self._watch.cancel()
        self.reader.close()

    async def _close_on_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.reader.close()


class StreamResponse(Response):
    """Sends a stream's events until the terminal one, or until the client leaves.

    The response closes `connected` when it ends. `preface` is sent before the first event.
    `headers` are added to its own. `resumed` marks a reader that is not the stream's first.
    `tell_place` makes the bytes that tell a client its place in the queue.
    """

    def __init__(
        self,
        connected: ConnectedReader,
        framer: Framer,
        liveness: Liveness,
        preface: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        resumed: bool = False,
        tell_place: Callable[[Place], bytes] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        own = {"x-stream-id": connected.reader.stream.id, **(headers or {})}
        added = [(name.lower().encode(), value.encode()) for name, value in own.items()]
        self.raw_headers = [*HEADERS, *added]
        self._connected = connected
        self._framer = framer
        self._liveness = liveness
        self._preface = preface
        self._resumed = resumed
        self._tell_place = tell_place or queue_comment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, and leave the body to the access record.

        Otherwise the middleware around the route would stay in memory as long as the stream.
        """
        reader = self._connected.reader
        if reader.is_closed and not self._resumed:
            # The client left before it could learn the stream's id: nobody will ever read it.
            reader.stream.cancel()
        access = access_of(scope)
        stream = reader.stream
        delivery = Delivery(stream.meter, 0.0 if self._resumed else stream.admitted_at)
        writer = BodyWriter(reader, self._framer, access.writer, delivery, self._tell_place)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # The head goes out now: the client may want to cancel a stream that has not started.
            await send({"type": "http.response.body", "body": self._preface, "more_body": True})
        except BaseException:
            self._connected.close()
            raise
        access.send_rest = partial(self._send_rest, writer)

    async def _send_rest(self, writer: "BodyWriter") -> bool:
        """Send the body; return True if all of it was sent."""
        self._liveness.add(writer)
        try:
            return await writer.until_end()
        except asyncio.CancelledError:
            if not writer.is_stalled:
                raise
            return False
        finally:
            self._liveness.remove(writer)
            self._connected.close()


class BodyWriter:
    """Writes the body of one response; made in the task that responds.

    If a write has to wait, the client does not keep up: everything new is written together once
    the client has taken that write.
    """

    __slots__ = (
        "_delivery",
        "_end",
        "_framer",
        "_reader",
        "_task",
        "_tell_place",
        "_waiting",
        "_write",
        "is_sending",
        "is_stalled",
        "since",
    )

    def __init__(
        self,
        reader: Reader,
        framer: Framer,
        writer: Writer,
        delivery: Delivery,
        tell_place: Callable[[Place], bytes],
    ) -> None:
        self._reader = reader
        self._framer = framer
        self._write = writer.write
        self._delivery = delivery
        self._tell_place = tell_place
        self._task = asyncio.current_task()
        self._end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting: asyncio.Task[None] | None = None
        self.is_sending = False
        self.is_stalled = False
        """True if the response was ended because its client did not read."""
        self.since = time.monotonic()

    @property
    def lag(self) -> int:
        """Return how many events the reader is behind."""
        return self._reader.lag

    def send_sign_of_life(self) -> None:
        """Send something soon."""
        self._reader.wake()

    def stop(self) -> None:
        """End the response: its client is stalled."""
        self.is_stalled = True
        if self._task is not None:
            self._task.cancel()

    async def until_end(self) -> bool:
        """Write events until the reader is done; return False if it was closed before its end."""
        reader = self._reader
        reader.listen(self._write_news)
        if reader.lag > 0 or reader.is_done:  # the log had events before this response
            reader.wake()
        try:
            return await self._end
        finally:
            if self._waiting is not None:
                self._waiting.cancel()

    def _write_news(self) -> None:
        reader = self._reader
        if not reader.is_woken or self.is_sending or self._end.done():
            return  # it was written already, or will be when the waiting write was taken
        if reader.is_closed:
            self._end.set_result(False)
            return
        try:
            batches = reader.take()
            is_last = reader.is_done
            body = self._framer.frame(batches) if batches else self._sign_of_life()
            if len(body) > MAX_WRITE_BYTES:
                waiting: Awaitable[None] | None = self._write_in_pieces(body, is_last)
            else:
                waiting = self._write(body, is_last)
        except Exception as error:
            self._end.set_exception(error)
            return
        self.since = time.monotonic()
        if waiting is not None:
            self.is_sending = True
            self._waiting = asyncio.create_task(self._wait_for(waiting, reader.num_taken, is_last))
            return
        if reader.num_taken:
            self._delivery.taken(reader.num_taken, is_last, reader.taken_since, self.since)
        if is_last:
            self._end.set_result(True)

    async def _write_in_pieces(self, body: bytes, is_last: bool) -> None:
        for start in range(0, len(body), MAX_WRITE_BYTES):
            end = start + MAX_WRITE_BYTES
            self.since = time.monotonic()
            waiting = self._write(body[start:end], is_last and end >= len(body))
            if waiting is not None:
                await waiting

    async def _wait_for(self, waiting: Awaitable[None], num_events: int, is_last: bool) -> None:
        try:
            await waiting
        except Exception as error:
            self._end.set_exception(error)
            return
        self.is_sending = False
        self.since = time.monotonic()
        if num_events:
            self._delivery.taken(num_events, is_last, self._reader.taken_since, self.since)
        if is_last:
            self._end.set_result(True)
        self._write_news()

    def _sign_of_life(self) -> bytes:
        place = self._reader.stream.place
        return HEARTBEAT if place is None else self._tell_place(place)


def queue_comment(place: Place) -> bytes:
    """Return the comment that tells a place in the queue; every parser skips it."""
    if place.eta is None:
        return b": queue position=%d\n" % place.position
    return b": queue position=%d eta=%.1f\n" % (place.position, place.eta)


def queue_event(place: Place) -> bytes:
    """Return the event that tells a place in the queue, for clients that ask for such events.

    It has no id, because it is not part of the answer.
    """
    eta = None if place.eta is None else round(place.eta, 1)
    data = msgspec.json.encode({"position": place.position, "eta": eta})
    return b"event: queue\ndata: %b\n\n" % data
