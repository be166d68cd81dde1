"""Responses that clients may ask for later, or continue with `previous_response_id`.

A stored response is kept for `retain` seconds, in at most `max_bytes` of memory over all owners. If
there is no room, the owner with the most bytes loses its oldest one. With a store of logs,
responses are in the store, too: every replica finds them, and they outlive their server.
"""

import asyncio
import collections
import contextlib
import time
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.api.openai.responses.frames import ResponseForm, response_id_of
from penstock.api.openai.responses.tools import INPUT, joined
from penstock.errors import Problem
from penstock.request import Message, ToolUse
from penstock.store.names import Names
from penstock.store.protocol import StoreError
from penstock.stream.fleet import store_unavailable
from penstock.stream.quotas import Owner
from penstock.stream.reader import Reader
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream

# How long a response may take from its end until it is in the store, and how often to look.
SAVE_TIMEOUT_S = 2.0
LOOK_EVERY_S = 0.05
# A response that runs is kept in the store for at least so long, in seconds.
MIN_TTL_S = 3600.0
_encode = msgspec.json.encode


class _Saved(msgspec.Struct):
    """A response as it is in the store; `final` is missing while it runs."""

    owner: Owner
    form: ResponseForm
    conversation: tuple[Message, ...]
    input: list[Any]
    final: dict[str, Any] | None = None


@dataclass
class StoredResponse:
    """A response, running or ended.

    `conversation` is everything before the answer except the instructions. `input` has the items
    that the client sent. `final` is the response object, once the response has ended.
    """

    owner: Owner
    known_stream: Stream | None
    form: ResponseForm
    conversation: Sequence[Message]
    input: list[Any]
    final: dict[str, Any] | None = None
    num_bytes: int = 0
    expiry: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """Return the response's id."""
        return response_id_of(self.form.stream_id)

    @property
    def stream(self) -> Stream:
        """Return the stream of a response that has no final object yet."""
        assert self.known_stream is not None
        return self.known_stream

    def shown(self) -> dict[str, Any]:
        """Return the response object as it is now."""
        return self.form.so_far([self.stream]) if self.final is None else self.final

    def messages(self) -> list[Message]:
        """Return the whole conversation, with the answer."""
        return [*self.conversation, *_messages_of(self.shown()["output"])]


class StoredResponses:
    """The stored responses of all owners. `names` is the store, if there is one."""

    def __init__(
        self, retain: float, max_bytes: int, streams: Streams, names: Names | None = None
    ) -> None:
        self._retain = retain
        self._max_bytes = max_bytes
        self._streams = streams
        self._names = names
        self._stored: dict[str, StoredResponse] = {}
        self._bytes_of: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._saving: set[asyncio.Task[None]] = set()
        if names is not None:
            streams.on_adopted.append(self._adopted)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def num_bytes(self) -> int:
        """Return the memory of all stored responses, in bytes."""
        return self._bytes_of.total()

    def add(self, response: StoredResponse, *, is_background: bool) -> None:
        """Store a response that has just begun.

        In the background it goes on without a client.
        """
        reader = Reader(response.stream) if is_background else None
        self._keep(response, reader)
        self._save(response)

    async def until_saved(self) -> None:
        """Wait until what was added before is in the store, if there is one."""
        if saving := list(self._saving):
            await asyncio.wait(saving)

    @property
    def is_shared(self) -> bool:
        """Return True if other replicas may have responses, too."""
        return self._names is not None

    def here(self, response_id: str) -> StoredResponse | None:
        """Return a response that this server has in its memory."""
        return self._stored.get(response_id)

    async def find(self, response_id: str, owner: Owner) -> StoredResponse:
        """Return a response that `owner` may see, of any replica. Raises Problem."""
        found = self._stored.get(response_id) or await self._load(response_id)
        if found is None or not owner.may_see(found.owner):
            raise not_found()
        if self.is_shared and found.final is None and found.stream.resumable:
            # Another server may have taken the stream over, and ended it a moment ago.
            found.known_stream = await self._streams.find_anywhere(
                found.stream.id, found.owner, afresh=True
            )
        return found

    async def remove(self, response: StoredResponse) -> None:
        """Forget a response at every replica; cancel it if it runs. Raises Problem."""
        self._forget(response)
        if self._names is not None:
            try:
                await self._names.delete(_name(response.id))
            except StoreError:
                raise store_unavailable() from None
        await self.cancel(response)

    async def cancel(self, response: StoredResponse) -> None:
        """Cancel a response if it runs, at any replica."""
        if response.final is None and response.stream.ended is None:
            await self._streams.cancel_anywhere(response.stream.id, response.owner)

    def _keep(self, response: StoredResponse, reader: Reader | None) -> None:
        self._stored[response.id] = response
        response.num_bytes = len(_encode([response.conversation, response.input]))
        self._bytes_of[response.owner.name] += response.num_bytes
        self._run(self._watch(response, reader))
        self._make_room()

    def _forget(self, response: StoredResponse) -> None:
        if self._stored.pop(response.id, None) is None:
            return
        self._bytes_of[response.owner.name] -= response.num_bytes
        if response.expiry is not None:
            response.expiry.cancel()

    async def _watch(self, response: StoredResponse, reader: Reader | None) -> None:
        """Wait for the response's end; keep its object instead of its stream."""
        stream = response.stream
        try:
            await stream.end()
        finally:
            if reader is not None:
                reader.close()
        if self._stored.get(response.id) is not response:
            return
        if stream.was_accepted.result() is not None:  # its client got an error instead
            await self.remove(response)
            return
        response.final = response.form.so_far([stream])
        num_bytes = len(_encode(response.final))
        response.num_bytes += num_bytes
        self._bytes_of[response.owner.name] += num_bytes
        loop = asyncio.get_running_loop()
        response.expiry = loop.call_later(self._retain, self._forget, response)
        self._save(response)
        self._make_room()

    def _make_room(self) -> None:
        while self.num_bytes > self._max_bytes:
            name, _ = self._bytes_of.most_common(1)[0]
            ended = (each for each in self._stored.values() if each.owner.name == name)
            oldest = next((each for each in ended if each.final is not None), None)
            if oldest is None:
                return  # all of them run; their streams are bounded elsewhere
            self._forget(oldest)
            if self._names is not None:
                self._run(_quietly(self._names.delete(_name(oldest.id))))

    # The store.

    def _save(self, response: StoredResponse) -> None:
        if self._names is not None:
            saved = _Saved(
                response.owner,
                response.form,
                tuple(response.conversation),
                response.input,
                response.final,
            )
            ttl = self._retain if response.final is not None else max(self._retain, MIN_TTL_S)
            put = self._names.put(_name(response.id), _pack(saved), ttl)
            saving = self._run(_quietly(put))
            self._saving.add(saving)
            saving.add_done_callback(self._saving.discard)

    async def _load(self, response_id: str) -> StoredResponse | None:
        """Return a response from the store, if it is there. Raises Problem."""
        if self._names is None:
            return None
        deadline = time.monotonic() + SAVE_TIMEOUT_S
        while True:
            try:
                data = await self._names.get(_name(response_id))
            except StoreError:
                raise store_unavailable() from None
            if data is None:
                return None
            saved = _unpack(data)
            stream = None if saved.final else await self._stream_of(saved)
            if saved.final is not None or stream is not None:
                return StoredResponse(
                    saved.owner, stream, saved.form, saved.conversation, saved.input, saved.final
                )
            if time.monotonic() > deadline:
                return None  # its server is gone, and so is its stream
            await asyncio.sleep(LOOK_EVERY_S)  # it may just have ended at its own server

    async def _stream_of(self, saved: _Saved) -> Stream | None:
        try:
            return await self._streams.find_anywhere(saved.form.stream_id, saved.owner)
        except Problem as problem:
            if problem.code == "store_unavailable":
                raise
            return None

    def _adopted(self, stream: Stream) -> None:
        """Keep the response of a stream that was another replica's until now."""
        if stream.record.form.dialect == ResponseForm.dialect:
            self._run(self._keep_adopted(stream))

    async def _keep_adopted(self, stream: Stream) -> None:
        try:
            response = await self._load(response_id_of(stream.id))
        except Problem:
            return
        if response is not None and response.final is None:
            response.known_stream = stream
            self._keep(response, None)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _name(response_id: str) -> str:
    return f"response:{response_id}"


async def _quietly(work: Awaitable[None]) -> None:
    """Do something with the store that may as well fail: this server still has the response."""
    with contextlib.suppress(StoreError):
        await work


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Saved).decode


def not_found() -> Problem:
    """Return the problem of a response that is not there, or is another owner's."""
    return Problem(
        "response_not_found",
        "There is no such response. It may not have been stored, or no longer be kept.",
    )


def item_in(response: StoredResponse, item_id: str) -> dict[str, Any] | None:
    """Return an item of a response's output, if there is one with this id."""
    items: list[dict[str, Any]] = response.shown()["output"]
    return next((item for item in items if item["id"] == item_id), None)


def response_of_item(item_id: str) -> str:
    """Return the id of the response whose item has this id."""
    return response_id_of(item_id.partition("_")[2].rpartition("_")[0])


def _messages_of(output: list[dict[str, Any]]) -> list[Message]:
    """Return the items of an answer as the turn that the model sees."""
    reasoning, text, calls = "", "", []
    for item in output:
        if item["type"] == "reasoning":
            reasoning += "".join(part["text"] for part in item["content"])
        elif item["type"] == "message":
            text += "".join(part["text"] for part in item["content"])
        else:
            name = joined(item.get("namespace", ""), item["name"])
            arguments = item.get("arguments")
            if arguments is None:
                arguments = _encode({INPUT: item["input"]}).decode()
            calls.append(ToolUse(item["call_id"], name, arguments))
    return [Message("assistant", text, reasoning, tuple(calls))] if output else []
