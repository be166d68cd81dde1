"""A stream as an HTTP response: the last step of a token's way.

In: a reader and a framer. Out: one `send` for everything that is new, each time the log grows.
Meanwhile the client is watched, and when it goes, the reader is closed at once; and the pulse,
which sees to it that a reader is neither silent nor stuck for ever.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.exchange import exchange_of
from penstock.api.pulse import Pulse, Sending
from penstock.observe.meter import Delivery
from penstock.stream.admission import Place
from penstock.stream.stream import Stream

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
    async def take(self) -> list[Taken]: ...
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
        pulse: Pulse,
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
        self._pulse = pulse
        self._preface = preface
        self._resumed = resumed
        self._tell = tell or queue_comment
        stream = reader.stream
        self._delivery = Delivery(stream.meter, 0.0 if resumed else stream.admitted_at)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._reader.is_closed and not self._resumed:
            # Its client went before it could learn the stream's id: nobody will ever read it.
            self._reader.stream.cancel()
        sending = Sending(self._reader)
        exchange_of(scope).carries(self._reader.stream, resumed=self._resumed)
        self._pulse.add(sending)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # The head goes out now: the client may want to stop what has not yet begun.
            await send({"type": "http.response.body", "body": self._preface, "more_body": True})
            await self._send_events(send, sending)
        except asyncio.CancelledError:
            if not sending.is_stalled:
                raise
        finally:
            self._watch.cancel()
            self._pulse.remove(sending)
            self._reader.close()

    async def _send_events(self, send: Send, sending: Sending) -> None:
        reader = self._reader
        taken = self._delivery.taken
        while not reader.is_closed:
            events = await reader.take()
            more = not reader.is_done
            body = self._frames.frame(events) if events else self._sign_of_life()
            for start in range(0, max(1, len(body)), MAX_SEND_BYTES):
                end = start + MAX_SEND_BYTES
                sending.begin()
                await send(
                    {
                        "type": "http.response.body",
                        "body": body[start:end],
                        "more_body": more or end < len(body),
                    }
                )
                sending.end()
            if events:
                has_deltas = more or len(events) > 1
                taken(len(events), has_deltas, reader.taken_since, sending.since)
            if not more:
                return

    def _sign_of_life(self) -> bytes:
        place = self._reader.stream.place
        return HEARTBEAT if place is None else self._tell(place)


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
