"""All streams of a server: open one, find one, cancel one, drain them.

In: valid requests, and what streams say of themselves. Out: streams, handed to the engine. Here is
decided what becomes of a stream that nobody reads, and of one that has ended:

- One that is not resumable is cancelled with its last reader.
- A resumable one goes on for `linger` seconds; if nobody reads it then, it is cancelled.
- A resumable one that has ended is kept for `retain` seconds, as long as all that are kept take no
  more than `retain_bytes`; the oldest goes first.
- Of one that is kept no more, how it ended is known, for a late `cancel` or `find`.

Not known here: HTTP, a concrete engine.
"""

import asyncio
import collections
import functools
import secrets
from dataclasses import dataclass
from typing import Protocol

from penstock.errors import BadRequest, NotFound, Unavailable
from penstock.events import Failure, TerminalEvent
from penstock.observe.meter import Meter
from penstock.request import Request
from penstock.stream.recovery import Recovery
from penstock.stream.stream import Stream

MAX_ENDED_KNOWN = 10_000


class Submits(Protocol):
    """The part of an engine that streams need (see `engine.child.ChildEngine`)."""

    def submit(self, request: Request, sink: Stream) -> None:
        """Hand over a request; raises Unavailable while there is no engine."""

    def cancel(self, request_id: str) -> None:
        """Stop a request."""

    async def until_ready(self) -> None:
        """Wait until requests can be submitted."""


@dataclass(frozen=True)
class Limits:
    """For how long, in seconds, and in how many bytes, streams are kept (see above).

    `restart_timeout`: how long running streams wait for an engine that died.
    """

    linger: float = 60.0
    retain: float = 300.0
    retain_bytes: int = 256 * 1024 * 1024
    restart_timeout: float = 300.0


@dataclass(frozen=True)
class _Ended:
    """What is left of a stream."""

    reason: str
    was_resumable: bool


class Streams:
    """The streams of one server."""

    def __init__(
        self, engine: Submits, limits: Limits | None = None, meter: Meter | None = None
    ) -> None:
        self.meter = meter or Meter()
        self._engine = engine
        self._limits = limits or Limits()
        self._recovery = Recovery(engine, self._limits.restart_timeout)
        self._open: dict[str, Stream] = {}
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._kept: dict[str, _Kept] = {}
        self._kept_bytes = 0
        self._ended: collections.OrderedDict[str, _Ended] = collections.OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_kept(self) -> int:
        """Streams that have ended and can still be read."""
        return len(self._kept)

    @property
    def num_kept_bytes(self) -> int:
        """About how much memory they take."""
        return self._kept_bytes

    def open_streams(self) -> list[Stream]:
        """Those that have not ended."""
        return list(self._open.values())

    @property
    def is_recovering(self) -> bool:
        """Streams wait to go on after the engine's death."""
        return self._recovery.is_under_way

    def open(
        self, request: Request, *, resumable: bool = False, opened_as: object = None
    ) -> Stream:
        """Begin a generation (see `Stream`). Raises Unavailable while draining or without an
        engine."""
        if self.draining:
            raise Unavailable(
                "draining",
                "The server is shutting down and takes no new requests.",
                headers={"Retry-After": "5"},
            )
        if self.is_recovering:
            raise Unavailable(
                "engine_down",
                "The engine stopped; those that it served go on first. Try again in a moment.",
                headers={"Retry-After": "1"},
            )
        stream = Stream(request, self, self.meter, resumable=resumable, opened_as=opened_as)
        self._open[stream.id] = stream
        self._idle.clear()
        try:
            self._engine.submit(request, stream)
        except Unavailable:
            self._forget(stream)
            raise
        self.meter.stream_started()
        return stream

    def find(self, stream_id: str) -> Stream:
        """A resumable stream, running or kept. Raises NotFound, or BadRequest (409, 410)."""
        if stream := self._open.get(stream_id):
            if stream.resumable:
                return stream
            raise _not_resumable()
        if kept := self._kept.get(stream_id):
            return kept.stream
        if ended := self._ended.get(stream_id):
            raise _history_lost() if ended.was_resumable else _not_resumable()
        raise _not_found()

    def cancel(self, stream_id: str) -> str:
        """Cancel a stream, in any phase, any number of times.

        Returns how it ended: "cancelled", or the reason for which it had ended before. Raises
        NotFound for an id that was never given, or so long ago that it is forgotten.
        """
        if stream := self._open.get(stream_id):
            stream.cancel()
        if stream_id in self._ended:
            return self._ended[stream_id].reason
        raise _not_found()

    async def drain(self, timeout: float) -> None:
        """Take no new streams, wait up to `timeout` seconds for the open ones, end the rest."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            self.shut_down()

    def shut_down(self) -> None:
        """End every open stream now, and take no new ones."""
        self.draining = True
        self._recovery.stop()
        for stream in list(self._open.values()):
            stream.give_up(
                "server_shutdown",
                "The server is shutting down before the stream could end. Send the request again.",
            )

    # What streams say of themselves (see stream.StreamOwner).

    def stream_ended(self, stream: Stream, *, engine_done: bool) -> None:
        """Keep it, if it may be read again."""
        if not engine_done:
            self._engine.cancel(stream.id)
        self._forget(stream)
        self._stop_lingering(stream)
        assert stream.ended is not None
        self._tell_meter(stream, stream.ended)
        self._ended[stream.id] = _Ended(ended_as(stream.ended), stream.resumable)
        if len(self._ended) > MAX_ENDED_KNOWN:
            self._ended.popitem(last=False)
        if stream.resumable and stream.was_accepted.result() is None:
            self._keep(stream)

    def stream_lost(self, stream: Stream) -> None:
        """Have it go on."""
        self._recovery.take(stream)

    def stream_read(self, stream: Stream) -> None:
        """It lingers no more."""
        self._stop_lingering(stream)

    def stream_unread(self, stream: Stream) -> None:
        """Cancel it, now or after lingering."""
        if stream.ended is not None:
            return
        if stream.resumable:
            loop = asyncio.get_running_loop()
            cancel = functools.partial(stream.cancel, client_gone=True)
            self._lingering[stream.id] = loop.call_later(self._limits.linger, cancel)
        else:
            stream.cancel(client_gone=True)

    def _tell_meter(self, stream: Stream, end: TerminalEvent) -> None:
        self.meter.stream_ended(
            cause="client_gone" if stream.client_gone else ended_as(end),
            error_code=end.code if isinstance(end, Failure) else "",
            prompt_tokens=end.usage.prompt_tokens,
            completion_tokens=end.usage.completion_tokens,
            total_time=end.timings.total_time,
        )

    def _forget(self, stream: Stream) -> None:
        self._open.pop(stream.id, None)
        if not self._open:
            self._idle.set()

    def _stop_lingering(self, stream: Stream) -> None:
        if timer := self._lingering.pop(stream.id, None):
            timer.cancel()

    def _keep(self, stream: Stream) -> None:
        stream.release()
        num_bytes = stream.log.num_bytes()
        expiry = asyncio.get_running_loop().call_later(self._limits.retain, self._drop, stream.id)
        self._kept[stream.id] = _Kept(stream, num_bytes, expiry)
        self._kept_bytes += num_bytes
        while self._kept_bytes > self._limits.retain_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, stream_id: str) -> None:
        kept = self._kept.pop(stream_id)
        kept.expiry.cancel()
        self._kept_bytes -= kept.num_bytes


@dataclass(frozen=True)
class _Kept:
    """A stream that has ended and can still be read."""

    stream: Stream
    num_bytes: int
    expiry: asyncio.TimerHandle


def _not_found() -> NotFound:
    return NotFound("stream_not_found", "There is no such stream. It may have ended long ago.")


def _not_resumable() -> BadRequest:
    return BadRequest(
        "not_resumable",
        "This stream was not opened as resumable: only its first reader can read it.",
        status=409,
    )


def _history_lost() -> BadRequest:
    return BadRequest(
        "history_lost", "This stream has ended, and its events are no longer kept.", status=410
    )


def ended_as(event: TerminalEvent) -> str:
    """The finish reason as clients are told of it: of a failure it is "error"."""
    return "error" if isinstance(event, Failure) else event.reason


def new_stream_id() -> str:
    """A name that cannot be guessed: 128 random bits in 22 URL-safe characters."""
    return secrets.token_urlsafe(16)
