"""Sends a stream as an HTTP response: the last step of a token's way.

A reader and a framer come in. Each time the log grows, one write goes out with everything new.
Meanwhile the client is watched, and the reader is closed as soon as the client disconnects.
`liveness` keeps a reader from being silent or stuck for ever.

Events are sent by plain calls, without a task: waking one would cost more than everything else that
a token needs.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.observe.meter import Delivery
from penstock.stream.admission import Place
from penstock.stream.lane import Frames, Lane
from penstock.stream.reader import Batch, Reader
from penstock.web.access import access_of
from penstock.web.liveness import Liveness
from penstock.web.peer import Peer
from penstock.web.statuses import Show, StatusLines

log = logging.getLogger(__name__)

EVENT_STREAM = b"text/event-stream; charset=utf-8"
NDJSON = b"application/x-ndjson"
_HEADERS = [
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
    """Turns a reader's events into the bytes of a response.

    A framer may have its own `heartbeat`, the bytes that are sent while there is nothing else. If
    its frames are no Server-Sent Events, it has a `media_type`.
    """

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""


class StraightFramer(Framer, Protocol):
    """A framer whose streams may take the straight path."""

    def straight(self) -> Frames | None:
        """Return how the next plain deltas of the only stream are framed.

        Return None if a frame takes more than the text.
        """


STREAM_HEADERS = [(b"content-type", EVENT_STREAM), *_HEADERS]
"""The headers of a response of Server-Sent Events."""


def stream_headers(framer: Framer) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response that this framer writes."""
    return [(b"content-type", getattr(framer, "media_type", EVENT_STREAM)), *_HEADERS]


class ConnectedReader:
    """A reader that is closed when its client disconnects.

    The request's body must have been read before.
    """

    __slots__ = ("peer", "reader")

    def __init__(self, reader: Reader, peer: Peer) -> None:
        self.reader = reader
        self.peer = peer
        peer.tell(self)

    def close(self) -> None:
        """Stop reading and watching. A second call does nothing."""
        self.peer.tell(None)
        self.reader.close()

    def client_gone(self) -> None:
        """Stop reading."""
        self.reader.close()

    def client_took(self) -> None:
        """Do nothing: nothing is written yet."""

    def client_may_be_gone(self) -> None:
        """Do nothing: nothing can be written yet."""


class StreamResponse(Response):
    """Sends a stream's events until the terminal one, or until the client leaves.

    The response closes `connected` when it ends. `preface` is sent before the first event.
    `headers` are added to its own. `resumed` marks a reader that is not the stream's first, and
    `has_key` a stream that its client can find again without knowing its id.
    `tell_place` makes the bytes that tell a client its place in the queue. With `show_status`, the
    client is told what happens to its stream, which must be the only one; its place in the queue is
    a status then. All these bytes are for Server-Sent Events only: clients of another media type
    get the framer's heartbeat.
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
        has_key: bool = False,
        tell_place: Callable[[Place], bytes] | None = None,
        show_status: Show | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        own = {"x-stream-id": connected.reader.stream.id, **(headers or {})}
        added = [(name.lower().encode(), value.encode()) for name, value in own.items()]
        media_type = getattr(framer, "media_type", EVENT_STREAM)
        self.raw_headers = [*stream_headers(framer), *added]
        self._connected = connected
        self._framer = framer
        self._liveness = liveness
        self._preface = preface
        self._resumed = resumed
        self._has_key = has_key
        self._tell_place = tell_place or queue_comment
        self._statuses: StatusLines | None = None
        if media_type is not EVENT_STREAM:
            self._preface = b""
            self._tell_place = lambda _: framer.heartbeat  # type: ignore[attr-defined]
        elif show_status is not None:
            self._statuses = StatusLines(connected.reader, show_status)
            self._tell_place = self._statuses.place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the head to the HTTP server, and leave the body to the access record.

        Otherwise the middleware around the route would stay in memory as long as the stream.
        """
        connected = self._connected
        stream = connected.reader.stream
        if connected.reader.is_closed and not (self._resumed or self._has_key):
            # The client left before it could learn the stream's id: nobody will ever read it.
            stream.cancel()
        delivery = Delivery(stream.meter, 0.0 if self._resumed else stream.admitted_at)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        except BaseException:
            connected.close()
            raise
        access_of(scope).rest = BodyWriter(
            *(connected, self._framer, delivery, self._liveness, self._preface, self._tell_place),
            self._statuses,
        )


class BodyWriter:
    """Writes the body of one response, from `begin` on.

    If a write has to wait, the client does not keep up: everything new is written together once
    the client has taken that write.
    """

    __slots__ = (
        "_connected",
        "_delivery",
        "_framer",
        "_is_last",
        "_lane",
        "_liveness",
        "_on_end",
        "_peer",
        "_preface",
        "_reader",
        "_rest",
        "_since",
        "_statuses",
        "_tell_place",
        "is_sending",
    )

    def __init__(
        self,
        connected: ConnectedReader,
        framer: Framer,
        delivery: Delivery,
        liveness: Liveness,
        preface: bytes,
        tell_place: Callable[[Place], bytes],
        statuses: StatusLines | None = None,
    ) -> None:
        self._connected = connected
        self._reader = connected.reader
        self._peer = connected.peer
        self._framer = framer
        self._delivery = delivery
        self._liveness = liveness
        self._preface: bytes | None = preface
        self._tell_place = tell_place
        self._statuses = statuses
        self._on_end: Callable[[bool], None] | None = None
        self._rest = b""
        self._is_last = False
        self.is_sending = False
        self._since = time.monotonic()
        self._lane: Lane | None = None

    @property
    def since(self) -> float:
        """Return when the last write began (while it waits) or was taken."""
        if self.is_sending:
            return self._since
        taken_straight = 0.0 if self._lane is None else self._lane.taken_at
        return max(self._since, self._delivery.last, taken_straight)

    @property
    def stream_id(self) -> str:
        """Return the id of the stream that the response shows."""
        return self._reader.stream.id

    @property
    def lag(self) -> int:
        """Return how many events the reader is behind."""
        return self._reader.lag

    def send_sign_of_life(self) -> None:
        """Send something soon."""
        self._reader.wake()

    def stop(self) -> None:
        """Cut the response off."""
        self._end(was_complete=False)
        self._peer.abort()

    def begin(self, on_end: Callable[[bool], None]) -> None:
        """Write the head and all events that the log has, then every new one.

        `on_end` is called once: with True if the whole body was taken, otherwise with False. Until
        then the response is watched.
        """
        self._on_end = on_end
        self._liveness.add(self)
        self._peer.tell(self)
        self._reader.listen(self._write_news)
        if self._statuses is not None:
            self._statuses.open()
        # The head goes out now: the client may want to cancel a stream that has not started.
        self._reader.is_woken = True
        self._write_news()

    def _write_news(self) -> None:
        reader = self._reader
        if not reader.is_woken or self.is_sending or self._on_end is None:
            return  # it was written already, or will be when the waiting write was taken
        if reader.is_closed:
            self._end(was_complete=False)
            return
        if reader.is_cut:
            self.stop()
            return
        try:
            batches = reader.take()
            statuses = self._statuses
            if statuses is not None and statuses.pending:
                body = statuses.weave(batches, self._framer.frame)
            else:
                body = self._framer.frame(batches) if batches else self._sign_of_life()
            if self._preface is not None:
                body, self._preface = self._preface + body, None
        except Exception as error:
            log.error("a response failed", exc_info=error)
            self._end(was_complete=False)
            self._peer.abort()
            return
        self._is_last = reader.is_done
        self._write(body)

    def _write(self, body: bytes) -> None:
        """Write a piece of the body after the other, as fast as the client takes them."""
        is_last = self._is_last
        while len(body) > MAX_WRITE_BYTES:
            piece, body = body[:MAX_WRITE_BYTES], body[MAX_WRITE_BYTES:]
            if not self._peer.write(piece, is_last=False):
                self._wait(body)
                return
        if self._peer.write(body, is_last):
            self._note_all_taken()
        else:
            self._wait(b"")

    def _wait(self, rest: bytes) -> None:
        self.is_sending = True
        self._rest = rest
        self._since = time.monotonic()

    def client_gone(self) -> None:
        """End the response."""
        self._end(was_complete=False)

    def client_may_be_gone(self) -> None:
        """Write something, to see whether the client is there."""
        self._reader.wake()

    def client_took(self) -> None:
        """Go on after a write that had to wait."""
        if not self.is_sending:
            return
        self.is_sending = False
        if self._rest:
            rest, self._rest = self._rest, b""
            self._write(rest)
        else:
            self._note_all_taken()
        if not self.is_sending:
            self._write_news()

    def _note_all_taken(self) -> None:
        self._since = now = time.monotonic()
        reader = self._reader
        if reader.num_taken:
            self._delivery.taken(reader.num_taken, self._is_last, reader.taken_since, now)
        if self._is_last:
            self._end(was_complete=True)
        elif reader.num_taken and self._peer.descriptor >= 0 and not reader.is_woken:
            self._open_lane()

    def _open_lane(self) -> None:
        """Leave the next deltas to the straight path, if they can go there."""
        if self._lane is None:
            straight = getattr(self._framer, "straight", None)  # not every framer is straight
            frames = straight() if straight is not None else None
            if frames is None:
                return
            self._lane = Lane(self._reader, self._peer, frames, self._delivery, self._note_block)
        self._reader.open_lane(self._lane)

    def _note_block(self, logged_at: float) -> None:
        """Go on after the straight path met a client that does not keep up."""
        self._reader.leave_lane()
        self._reader.note_taken(logged_at)
        self._is_last = False
        self._wait(b"")

    def _end(self, *, was_complete: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        self._liveness.remove(self)
        self._lane = None  # it refers to this writer
        if self._statuses is not None:
            self._statuses.close()
        self._connected.close()
        on_end(was_complete)

    def _sign_of_life(self) -> bytes:
        place = self._reader.stream.place
        if place is not None:
            return self._tell_place(place)
        if self._preface is not None:
            return b""  # the first write is a sign by itself
        return getattr(self._framer, "heartbeat", HEARTBEAT)


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
