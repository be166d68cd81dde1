"""Joins a request to the answer that an earlier request with the same key has begun.

In: the client's `Idempotency-Key`, and the body. Out: the stream of the earlier request, or the
word that this request begins it. A key belongs to its owner and its route, and to one body. It is
free again when its answer is no longer kept, was cancelled, or failed in a way that is safe to
retry.

What a key stands for is a value in `Names`, so it holds for all replicas that share a store. A
replica claims the key before it opens the stream, and confirms it afterwards. A key whose stream is
gone is taken over by the replica that gets its *succession*, a second name for a few seconds: so
two replicas never both begin a stream, and none removes what another one has just put there.
"""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Coroutine, Iterator
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest

from penstock.api.headers import values_of
from penstock.errors import Problem
from penstock.events import Failure, TerminalEvent
from penstock.store.names import Names
from penstock.store.protocol import StoreError
from penstock.stream.fleet import store_unavailable
from penstock.stream.quotas import Owner
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream

REPLAYED = "Idempotency-Replayed"
"""The header that says that a response is the answer to an earlier request."""

_HEADER = b"idempotency-key"
_KEY = re.compile(r"[ -~]{1,255}")
# How long a replica may take from its claim of a key until its stream is open.
_CLAIM_S = 10.0
# Within this time of finding a stream gone, a replica has asked for the succession.
_SUCCESSION_S = 10.0
# How often to look whether another replica has opened its stream. It takes one write to the store.
_LOOK_EVERY_S = 0.05
# Without a limit of a stream's time, a key is kept at most this long: a week.
_MAX_TIME_S = 7 * 24 * 3600.0
_GONE = ("stream_not_found", "history_lost", "not_resumable")


class _Taken(msgspec.Struct, array_like=True):
    """What a key stands for: the digest of the body, and the stream, which may not be open yet."""

    body: bytes
    stream_id: str
    is_open: bool


class Joining:
    """The keys of the streams in `streams`.

    `max_timeout` and `retain` are the server's limits of a stream's time, in seconds; a
    `max_timeout` of 0 is no limit.
    """

    def __init__(
        self, names: Names, streams: Streams, max_timeout: float = 0.0, retain: float = 300.0
    ) -> None:
        self._names = names
        self._streams = streams
        self._ttl = (max_timeout or _MAX_TIME_S) + retain
        self._under_way: set[asyncio.Task[None]] = set()
        streams.kept.on_dropped = self._dropped
        streams.on_adopted.append(self._adopted)

    async def is_taken(self, name: str) -> bool:
        """Return True if the name has a stream, perhaps one that is gone. Raises Problem."""
        with _store_problems():
            return await self._names.get(name) is not None

    async def join(self, name: str, body: bytes, owner: Owner, stream_id: str) -> Stream | None:
        """Return the stream that has this name.

        Returns None if the name is now claimed for `stream_id`: then open that stream with the name
        in its record, and `confirm` it or `release` the name. Read a stream that this returns at
        once, as one of `Streams.find_anywhere`. Raises Problem if another body has the name.
        """
        mine = _encode(_Taken(body, stream_id, is_open=False))
        with _store_problems():
            while value := await self._names.put_if_absent(name, mine, _CLAIM_S):
                taken = _decode(value)
                stream = await self._find(taken, owner) if taken.is_open else None
                is_gone = taken.is_open and stream is None
                if taken.body != body and not is_gone:
                    raise _key_reused()
                if stream is not None:
                    return stream
                if is_gone and await self._succeeds(name, taken.stream_id):
                    await self._names.put(name, mine, _CLAIM_S)
                    return None
                await asyncio.sleep(_LOOK_EVERY_S)
        return None

    async def confirm(self, name: str, body: bytes, stream_id: str) -> None:
        """Let others join a stream that is open. Raises Problem.

        The store knows the stream before it knows its name: a replica that found no stream with the
        name would begin another one.
        """
        await self._streams.until_stored(stream_id)
        with _store_problems():
            await self._names.put(name, _encode(_Taken(body, stream_id, is_open=True)), self._ttl)

    async def release(self, name: str) -> None:
        """Free a name that was claimed for a stream that could not be opened. Raises Problem."""
        with _store_problems():
            await self._names.delete(name)

    async def _find(self, taken: _Taken, owner: Owner) -> Stream | None:
        """Return the stream, or None if it is gone or its answer is not worth keeping."""
        try:
            stream = await self._streams.find_anywhere(taken.stream_id, owner)
        except Problem as problem:
            if problem.code in _GONE:
                return None
            raise
        return None if _can_be_repeated(stream.ended) else stream

    async def _succeeds(self, name: str, stream_id: str) -> bool:
        """Return True if the caller alone may change the name of a stream that is gone."""
        succession = f"{name}:{stream_id}"
        return await self._names.put_if_absent(succession, b"1", _SUCCESSION_S) is None

    def _adopted(self, stream: Stream) -> None:
        """Confirm the name of a stream whose server may have died before it could do so."""
        if stream.record.name:
            self._run(self._confirm_for_another(stream.record.name, stream.id))

    async def _confirm_for_another(self, name: str, stream_id: str) -> None:
        with contextlib.suppress(StoreError, Problem):  # then the name ends with its time
            value = await self._names.get(name)
            taken = None if value is None else _decode(value)
            if taken is not None and taken.stream_id == stream_id and not taken.is_open:
                await self.confirm(name, taken.body, stream_id)

    def _dropped(self, record: StreamRecord) -> None:
        """Free the name of a stream that is no longer kept."""
        if record.name:
            self._run(self._free(record.name, record.id))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _free(self, name: str, stream_id: str) -> None:
        with contextlib.suppress(StoreError):  # then the name ends with its time
            if await self._succeeds(name, stream_id):
                await self._names.delete(name)


def _can_be_repeated(end: TerminalEvent | None) -> bool:
    """Return True if an answer that ended so is none, and another request may try again."""
    if end is None:
        return False
    if isinstance(end, Failure):
        return end.retry_safe
    is_empty = not end.usage.completion_tokens
    return end.reason == "cancelled" or (end.reason == "deadline" and is_empty)


def name_of(http: HttpRequest, owner: Owner, route: str) -> str | None:
    """Return the name of the request's key, None if the request has no key. Raises Problem.

    The name is a digest: it has nothing of the key, which may be a secret, and one length.
    """
    given = values_of(http, _HEADER)
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise Problem(
            "invalid_value", "Idempotency-Key is given once, with 1 to 255 printable characters."
        )
    scope = msgspec.json.encode((owner.name, route, given[0]))
    return "key:" + hashlib.sha256(scope).hexdigest()


def digest_of(body: dict[str, Any]) -> bytes:
    """Return the digest of a JSON object, whatever the order of its names and its white space."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).digest()


@contextlib.contextmanager
def _store_problems() -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise store_unavailable() from None


def _key_reused() -> Problem:
    return Problem(
        "idempotency_key_reused",
        "This Idempotency-Key has an answer to another body. Send the same body again to get that"
        " answer, or use a new key for a new request.",
    )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Taken).decode
