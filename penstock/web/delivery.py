"""A stream as an HTTP response: the last step of a token's way.

In: a reader and a framer. Out: one `send` for everything that is new, each time the log grows.
Meanwhile the client is watched: when it goes, the reader is closed at once. The liveness check
keeps a reader from being silent or stuck for ever.

A response waits in one `await` for its end. What comes meanwhile is sent by plain calls, without a
task being woken: that would cost more than everything else that a token needs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Generic, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.observe.meter import Delivery
from penstock.stream.admission import Place
from penstock.stream.stream import Stream
from penstock.web.access import access_of
from penstock.web.liveness import Liveness

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would else hold the tokens back
]
HEARTBEAT = b": ping\n"
"""A comment, which every parser skips. It has no blank line of its own: after an event with an id,
some parsers (the OpenAI SDK's) would make an empty event of that."""

# What waits to be sent to a client that does not read is held by us, not by the kernel: in pieces
# of this size, so that one that reads slowly is seen to read.
MAX_SEND_BYTES = 32 * 1024


Taken = TypeVar("Taken")


class Readable(Protocol[Taken]):
    """A reader of one stream or of several (see `stream.reader`)."""

    @property
    def stream(self) -> Stream: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def is_done(self) -> bool: ...
    @property
    def lag(self) -> int: ...
    @property
    def taken_since(self) -> float: ...
    @property
    def is_woken(self) -> bool: ...
    def listen(self, on_news: Callable[[], None]) -> None: ...
    def take(self) -> list[Taken]: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class Framer(Protocol[Taken]):
    """Makes bytes of what such a reader takes (see `frames`)."""

    def frame(self, events: list[Taken]) -> bytes: ...


class StreamResponse(Response, Generic[Taken]):
    """Sends a stream's events until the terminal one, or until the client goes.

    `watch` is the task that watches the client (see `watch_client`); it ends with the response.
    `preface` is sent before the first event. `resumed`: the reader is not the stream's first.
    `tell` makes the bytes that tell a client where in the line its stream stands.
    """

    def __init__(
        self,
        reader: Readable[Taken],
        frames: Framer[Taken],
        watch: asyncio.Task[None],
        liveness: Liveness,
        preface: bytes = b"",
        *,
        resumed: bool = False,
        tell: Callable[[Place], bytes] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = [*HEADERS, (b"x-stream-id", reader.stream.id.encode())]
        self._reader = reader
        self._frames = frames
        self._watch = watch
        self._liveness = liveness
        self._preface = preface
        self._resumed = resumed
        self._tell = tell or queue_comment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, and leave the body to the access: what stands around a route would else
        be held in memory, and wait, as long as the stream does."""
        reader = self._reader
        if reader.is_closed and not self._resumed:
            # Its client went before it could learn the stream's id: nobody will ever read it.
            reader.stream.cancel()
        access = access_of(scope)
        stream = reader.stream
        delivery = Delivery(stream.meter, 0.0 if self._resumed else stream.admitted_at)
        writer = BodyWriter(reader, self._frames, access.send, delivery, self._tell)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # The head goes out now: the client may want to stop what has not yet begun.
            await send({"type": "http.response.body", "body": self._preface, "more_body": True})
        except BaseException:
            self._watch.cancel()
            reader.close()
            raise
        access.rest = partial(_send_rest, writer, reader, self._watch, self._liveness)


async def _send_rest(
    writer: "BodyWriter[Taken]",
    reader: Readable[Taken],
    watch: asyncio.Task[None],
    liveness: Liveness,
) -> bool:
    """Whether all of it was sent."""
    liveness.add(writer)
    try:
        return await writer.until_end()
    except asyncio.CancelledError:
        if not writer.is_stalled:
            raise
        return False
    finally:
        watch.cancel()
        liveness.remove(writer)
        reader.close()


class BodyWriter(Generic[Taken]):
    """The body of one response on its way out; made in the task that responds.

    `send` is ASGI's. What it returns is mostly done at once; where it is not, the client does not
    keep up, and what comes meanwhile is sent together when it has taken that.
    """

    __slots__ = (
        "_delivery",
        "_end",
        "_frames",
        "_reader",
        "_send",
        "_task",
        "_tell",
        "_waiting",
        "is_sending",
        "is_stalled",
        "since",
    )

    def __init__(
        self,
        reader: Readable[Taken],
        frames: Framer[Taken],
        send: Send,
        delivery: Delivery,
        tell: Callable[[Place], bytes],
    ) -> None:
        self._reader = reader
        self._frames = frames
        self._send = send
        self._delivery = delivery
        self._tell = tell
        self._task = asyncio.current_task()
        self._end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting: asyncio.Task[None] | None = None
        self.is_sending = False
        self.is_stalled = False
        """It was ended because its client did not read."""
        self.since = time.monotonic()

    @property
    def lag(self) -> int:
        """Events that the reader is behind."""
        return self._reader.lag

    def send_sign_of_life(self) -> None:
        """Send something, soon."""
        self._reader.wake()

    def stop(self) -> None:
        """End the response: its client is stalled."""
        self.is_stalled = True
        if self._task is not None:
            self._task.cancel()

    async def until_end(self) -> bool:
        """Send what comes until the reader is done. Returns whether that was all: False where it
        was closed before."""
        reader = self._reader
        reader.listen(self._send_news)
        if reader.lag > 0 or reader.is_done:  # it was in the log before
            reader.wake()
        try:
            return await self._end
        finally:
            if self._waiting is not None:
                self._waiting.cancel()

    def _send_news(self) -> None:
        reader = self._reader
        if not reader.is_woken or self.is_sending or self._end.done():
            return  # it went already, or goes when what waits was taken
        if reader.is_closed:
            self._end.set_result(False)
            return
        try:
            events = reader.take()
            is_last = reader.is_done
            body = self._frames.frame(events) if events else self._sign_of_life()
            if len(body) > MAX_SEND_BYTES:
                sent: Awaitable[None] = self._send_in_pieces(body, is_last)
            else:
                sent = self._send(
                    {"type": "http.response.body", "body": body, "more_body": not is_last}
                )
        except Exception as error:
            self._end.set_exception(error)
            return
        self.since = time.monotonic()
        if not _needs_no_wait[type(sent)]:
            self.is_sending = True
            self._waiting = asyncio.create_task(self._wait_for(sent, events, is_last))
            return
        if events:
            self._delivery.taken(len(events), is_last, reader.taken_since, self.since)
        if is_last:
            self._end.set_result(True)

    async def _send_in_pieces(self, body: bytes, is_last: bool) -> None:
        for start in range(0, len(body), MAX_SEND_BYTES):
            end = start + MAX_SEND_BYTES
            more = not is_last or end < len(body)
            self.since = time.monotonic()
            await self._send(
                {"type": "http.response.body", "body": body[start:end], "more_body": more}
            )

    async def _wait_for(self, sent: Awaitable[None], events: list[Taken], is_last: bool) -> None:
        try:
            await sent
        except Exception as error:
            self._end.set_exception(error)
            return
        self.is_sending = False
        self.since = time.monotonic()
        if events:
            self._delivery.taken(len(events), is_last, self._reader.taken_since, self.since)
        if is_last:
            self._end.set_result(True)
        self._send_news()

    def _sign_of_life(self) -> bytes:
        place = self._reader.stream.place
        return HEARTBEAT if place is None else self._tell(place)


class _NeedsNoWait(dict[type, bool]):
    """Of the kinds of awaitables that `send` returns, whether there is nothing to wait for.

    Granian returns a future only if it has to wait for the client; a coroutine has not even begun.
    """

    def __missing__(self, kind: type) -> bool:
        is_future = hasattr(kind, "_asyncio_future_blocking")  # as asyncio itself knows one
        self[kind] = not (is_future or issubclass(kind, Coroutine))
        return self[kind]


_needs_no_wait = _NeedsNoWait()


def queue_comment(place: Place) -> bytes:
    """Where in the line, for people and for those who look for it; every parser skips it."""
    if place.eta is None:
        return b": queue position=%d\n" % place.position
    return b": queue position=%d eta=%.1f\n" % (place.position, place.eta)


def queue_event(place: Place) -> bytes:
    """The same as an event, for those who ask. It has no id: it is not part of the answer."""
    eta = None if place.eta is None else round(place.eta, 1)
    data = msgspec.json.encode({"position": place.position, "eta": eta})
    return b"event: queue\ndata: %b\n\n" % data


def watch_client(reader: Readable[Taken], receive: Receive) -> asyncio.Task[None]:
    """A task that closes the reader when the client disconnects. The body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        reader.close()

    return asyncio.create_task(watch())
