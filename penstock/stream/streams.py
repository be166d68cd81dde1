"""All open streams: open one, find one, cancel one, drain them.

In: valid requests. Out: streams, handed to the engine. Not known here: HTTP, a concrete engine.
"""

import asyncio
import collections
import secrets
from typing import Protocol

from penstock.engine.protocol import Sink
from penstock.errors import NotFound, Unavailable
from penstock.events import Failure, TerminalEvent
from penstock.request import Request
from penstock.stream.stream import Stream

MAX_ENDED_KEPT = 10_000


class Submits(Protocol):
    """The part of an engine that streams need."""

    def submit(self, request: Request, sink: Sink) -> None:
        """See `engine.protocol.Engine.submit`; raises Unavailable while there is no engine."""

    def cancel(self, request_id: str) -> None:
        """See `engine.protocol.Engine.cancel`."""


class Streams:
    """The streams of one server. Ended ones leave only how they ended, for a late `cancel`."""

    def __init__(self, engine: Submits) -> None:
        self._engine = engine
        self._open: dict[str, Stream] = {}
        self._ended: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request: Request) -> Stream:
        """Begin a generation. Raises Unavailable while draining or without an engine."""
        if self.draining:
            raise Unavailable(
                "draining",
                "The server is shutting down and takes no new requests.",
                headers={"Retry-After": "5"},
            )
        stream = Stream(request, self._on_end)
        self._open[stream.id] = stream
        self._idle.clear()
        try:
            self._engine.submit(request, stream)
        except Unavailable:
            self._forget(stream)
            raise
        return stream

    def cancel(self, stream_id: str) -> str:
        """Cancel a stream, in any phase, any number of times.

        Returns how it ended: "cancelled", or the reason for which it had ended before. Raises
        NotFound for an id that was never given, or so long ago that it is forgotten.
        """
        if stream := self._open.get(stream_id):
            stream.cancel()
        if stream_id in self._ended:
            return self._ended[stream_id]
        raise NotFound("stream_not_found", "There is no such stream. It may have ended long ago.")

    async def drain(self, timeout: float) -> None:
        """Take no new streams, wait up to `timeout` seconds for the open ones, cancel the rest."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            self.cancel_all()

    def cancel_all(self) -> None:
        """Cancel every open stream."""
        for stream in list(self._open.values()):
            stream.cancel()

    def _on_end(self, stream: Stream, engine_done: bool) -> None:
        if not engine_done:
            self._engine.cancel(stream.id)
        self._forget(stream)
        assert stream.ended is not None
        self._ended[stream.id] = ended_as(stream.ended)
        if len(self._ended) > MAX_ENDED_KEPT:
            self._ended.popitem(last=False)

    def _forget(self, stream: Stream) -> None:
        self._open.pop(stream.id, None)
        if not self._open:
            self._idle.set()


def ended_as(event: TerminalEvent) -> str:
    """The finish reason as clients are told of it: of a failure it is "error"."""
    return "error" if isinstance(event, Failure) else event.reason


def new_stream_id() -> str:
    """A name that cannot be guessed: 128 random bits in 22 URL-safe characters."""
    return secrets.token_urlsafe(16)
