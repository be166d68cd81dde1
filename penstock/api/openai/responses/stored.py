"""Responses that clients may ask for later, or continue with `previous_response_id`.

A stored response is kept for `retain` seconds, in at most `max_bytes` of memory over all owners. If
there is no room, the owner with the most bytes loses its oldest one. Responses are kept in memory,
so they are lost when the server ends.
"""

import asyncio
import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.api.openai.responses.frames import ResponseForm, response_id_of
from penstock.api.openai.responses.tools import INPUT, joined
from penstock.errors import Problem
from penstock.request import Message, ToolUse
from penstock.stream.quotas import Owner
from penstock.stream.reader import Reader
from penstock.stream.stream import Stream

_encode = msgspec.json.encode


@dataclass
class StoredResponse:
    """A response, running or ended.

    `conversation` is everything before the answer except the instructions. `input` has the items
    that the client sent. `final` is the response object, once the response has ended.
    """

    owner: Owner
    stream: Stream
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

    def shown(self) -> dict[str, Any]:
        """Return the response object as it is now."""
        return self.form.so_far([self.stream]) if self.final is None else self.final

    def messages(self) -> list[Message]:
        """Return the whole conversation, with the answer."""
        return [*self.conversation, *_messages_of(self.shown()["output"])]


class StoredResponses:
    """The stored responses of all owners."""

    def __init__(self, retain: float, max_bytes: int) -> None:
        self._retain = retain
        self._max_bytes = max_bytes
        self._stored: dict[str, StoredResponse] = {}
        self._bytes_of: collections.Counter[str] = collections.Counter()
        self._watching: set[asyncio.Task[None]] = set()

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
        self._stored[response.id] = response
        response.num_bytes = len(_encode([response.conversation, response.input]))
        self._bytes_of[response.owner.name] += response.num_bytes
        reader = Reader(response.stream) if is_background else None
        task = asyncio.get_running_loop().create_task(self._watch(response, reader))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        self._make_room()

    def find(self, response_id: str, owner: Owner) -> StoredResponse:
        """Return a response that `owner` may see. Raises Problem."""
        found = self._stored.get(response_id)
        if found is None or not owner.may_see(found.owner):
            raise Problem(
                "response_not_found",
                "There is no such response. It may not have been stored, or no longer be kept.",
            )
        return found

    def item(self, item_id: str, owner: Owner) -> dict[str, Any] | None:
        """Return an item of a response's output that `owner` may see, if there is one."""
        stream_id = item_id.partition("_")[2].rpartition("_")[0]
        found = self._stored.get(response_id_of(stream_id))
        if found is None or not owner.may_see(found.owner):
            return None
        items: list[dict[str, Any]] = found.shown()["output"]
        return next((item for item in items if item["id"] == item_id), None)

    def remove(self, response: StoredResponse) -> None:
        """Forget a response; cancel it if it runs."""
        if self._stored.pop(response.id, None) is None:
            return
        self._bytes_of[response.owner.name] -= response.num_bytes
        if response.expiry is not None:
            response.expiry.cancel()
        if response.final is None:
            response.stream.cancel()

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
            self.remove(response)
            return
        response.final = response.form.so_far([stream])
        num_bytes = len(_encode(response.final))
        response.num_bytes += num_bytes
        self._bytes_of[response.owner.name] += num_bytes
        loop = asyncio.get_running_loop()
        response.expiry = loop.call_later(self._retain, self.remove, response)
        self._make_room()

    def _make_room(self) -> None:
        while self.num_bytes > self._max_bytes:
            name, _ = self._bytes_of.most_common(1)[0]
            ended = (each for each in self._stored.values() if each.owner.name == name)
            oldest = next((each for each in ended if each.final is not None), None)
            if oldest is None:
                return  # all of them run; their streams are bounded elsewhere
            self.remove(oldest)


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
