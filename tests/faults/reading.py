"""Readers of streams that record all they see: open, be cut, resume by Last-Event-ID, go away.

In: a server's address and what to ask. Out: entries of a history. Not known here: what is right
(see `checker`). It shares nothing with Penstock's own client.
"""

import asyncio
import itertools
import json
import time
from typing import Any, Literal

from tests.faults.client_request import ClientRequest, Head, fetch, request_bytes, send_request
from tests.faults.history import (
    Abort,
    Attached,
    Detached,
    Ended,
    Got,
    History,
    How,
    Refused,
    Told,
    Truth,
)
from tests.faults.parser import EventParser, ServerSent
from tests.faults.proxy import Address, CloseKind

PATIENCE_S = 60.0
RETRY_S = 0.02
"""Between two attempts to reach a server that is not there, or has no engine yet."""

_numbers = itertools.count(1)


def fresh_word(letters: int = 0) -> str:
    """A word that no other stream has, of at least so many letters."""
    return f"w{next(_numbers)}".ljust(letters, "x")


class RefusedError(Exception):
    """A request was answered with another status than the wanted one."""

    def __init__(self, head: Head, body: bytes) -> None:
        super().__init__(f"{head.status} {body[:300]!r}")
        self.status = head.status
        try:
            self.code = str(json.loads(body)["code"])
        except (ValueError, LookupError, TypeError):
            self.code = ""


class Reader:
    """A logical reader of one stream: `cursor` is the id of the last event it had, -1 for none."""

    def __init__(self, address: Address, history: History, *, source: str = "") -> None:
        self.address = address
        self.name = f"r{next(_numbers)}"
        self.stream = ""
        self.cursor = -1
        self.ended: Ended | None = None
        self.is_resumable = True
        self.num_comments = 0
        self.arrivals: list[float] | None = None
        """When each event came, where somebody sets a list."""
        self.receive_buffer = 0
        self._history = history
        self._source = source
        self._parser = EventParser()
        self._request: ClientRequest | None = None
        self._body: bytearray | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    # Responses.

    async def open(self, truth: Truth, *, resumable: bool = True, **fields: Any) -> None:
        """Ask for a stream. Raises OSError or RefusedError where there is none to be had."""
        self.is_resumable = resumable
        asked = {"prompt": f"{truth.word or 'Hello'} says", "stream": True, **fields}
        if resumable:
            asked["resumable"] = True
        body = json.dumps(asked).encode()
        head = await self._ask(request_bytes("POST", "/generate", body=body))
        self.stream = head.headers["x-stream-id"]
        self._history.open(self.stream, truth)
        self._attached()

    async def attach(self, stream: str = "", *, by: Literal["header", "query"] = "header") -> None:
        """Read on after the cursor. Raises OSError or RefusedError."""
        self.stream = stream or self.stream
        path, headers = f"/streams/{self.stream}", []
        if self.cursor >= 0 and by == "query":
            path += f"?after={self.cursor}"
        elif self.cursor >= 0:
            headers.append(f"Last-Event-ID: {self.cursor}")
        await self._ask(request_bytes("GET", path, *headers))
        self._attached()

    async def closed(self) -> How:
        """Wait for the response's end; how it ended."""
        how = await self.request.ended
        self._request = None
        self._detached(how)
        return how

    async def got(self, index: int) -> None:
        """Wait until event `index` has come. Raises ConnectionError where it cannot any more."""
        if self.cursor >= index:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((index, waiter))
        await asyncio.wait((waiter, self.request.ended), return_when=asyncio.FIRST_COMPLETED)
        if self.cursor < index:
            raise ConnectionResetError(f"the response ended at event {self.cursor} of {index}")

    async def read_through(self, patience: float = PATIENCE_S) -> Ended:
        """Read to the terminal event, resuming as often as need be."""
        async with asyncio.timeout(patience):
            attempts = 0
            while True:
                if self._request is not None:
                    await self.closed()
                if self.ended is not None:
                    return self.ended
                attempts += 1
                try:
                    await self.attach(by="query" if attempts % 4 == 0 else "header")
                except OSError:
                    await asyncio.sleep(RETRY_S)

    # Going away.

    def forget(self) -> None:
        """Give up a request to which no response has begun."""
        if self._request is not None:
            self._request.leave("RST")
            self._request = None

    def leave(self, how: CloseKind = "FIN") -> None:
        """Go; a stream that cannot be resumed is thereby to be cancelled."""
        if self._request is not None:
            if not self.is_resumable and self.ended is None:
                self._history.add(self.stream, Abort(time.monotonic(), "disconnect"))
            self._request.leave(how)
            self._detached("left")
            self._request = None

    def half_close(self) -> None:
        """Send FIN and go on reading: the server takes it for a disconnect."""
        if not self.is_resumable:
            self._history.add(self.stream, Abort(time.monotonic(), "disconnect"))
        self.request.half_close()

    def stop_reading(self) -> None:
        """Stay, and take nothing more."""
        self.request.stop_reading()

    def read_on(self) -> None:
        """Take again what comes."""
        self.request.read_on()

    @property
    def request(self) -> ClientRequest:
        """The request that is under way, and its response."""
        assert self._request is not None
        return self._request

    @property
    def has_response(self) -> bool:
        """There is a response whose end has not been recorded."""
        return self._request is not None

    @property
    def is_over(self) -> bool:
        """The response has ended, in whatever way."""
        return self._request is None or self._request.ended.done()

    @property
    def port(self) -> int:
        """The port that this reader comes from."""
        return int(self.request.socket.getsockname()[1])

    # What comes.

    async def _ask(self, request: bytes) -> Head:
        self._parser = EventParser()
        self._body = bytearray()
        answer = await send_request(
            self.address,
            request,
            self._on_body,
            receive_buffer=self.receive_buffer,
            source=self._source,
        )
        self._request = answer
        head = await answer.head
        if head is None:
            self._request = None
            raise ConnectionResetError("the response was cut before it began")
        if head.status == 200:
            return head
        await answer.ended
        self._request = None
        refused = RefusedError(head, bytes(self._body))
        if self.stream:
            self._history.add(
                self.stream,
                Refused(time.monotonic(), self.name, refused.status, refused.code),
            )
        raise refused

    def _attached(self) -> None:
        self._history.add(self.stream, Attached(time.monotonic(), self.name, self.cursor))
        # What has come with the head is read now that the stream has its name.
        early, self._body = self._body, None
        if early:
            self._on_body(bytes(early))

    def _detached(self, how: How) -> None:
        self._history.add(self.stream, Detached(time.monotonic(), self.name, how))

    def _on_body(self, data: bytes) -> None:
        if self._body is not None:
            self._body += data
            return
        events = self._parser.feed(data)
        if self._parser.num_comments:
            self.num_comments += self._parser.num_comments
            self._parser.num_comments = 0
        for event in events:
            self._on_event(event)
        if events and self._waiting:
            for index, waiter in self._waiting:
                if index <= self.cursor and not waiter.done():
                    waiter.set_result(None)
            self._waiting = [each for each in self._waiting if not each[1].done()]

    def _on_event(self, event: ServerSent) -> None:
        now = time.monotonic()
        if self.arrivals is not None:
            self.arrivals.append(now)
        fields = json.loads(event.data)
        index = int(fields["index"])
        event_id = None if event.last_id is None else int(event.last_id)
        if self.is_resumable and event_id is None:
            event_id = -1  # it should have had one: the checker says so
        self.cursor = index if event_id is None else event_id
        if not fields["finished"]:
            self._history.add(
                self.stream, Got(now, self.name, event_id, index, fields["token"], event.data)
            )
            return
        self.ended = Ended(
            now,
            self.name,
            event_id,
            index,
            fields["finish_reason"],
            fields.get("error", {}).get("code", ""),
            fields["usage"]["completion_tokens"],
            event.data,
        )
        self._history.add(self.stream, self.ended)


async def cancel(address: Address, history: History, stream: str) -> str:
    """DELETE a stream, and tell how it ended. Raises OSError or RefusedError."""
    history.add(stream, Abort(time.monotonic(), "delete"))
    return await ask_how_it_ended(address, history, stream)


async def ask_how_it_ended(address: Address, history: History, stream: str) -> str:
    """DELETE of a stream that has ended, or should have: how it did. Raises as `cancel` does."""
    head, body = await fetch(address, request_bytes("DELETE", f"/streams/{stream}"))
    if head.status != 200:
        raise RefusedError(head, body)
    reason = str(json.loads(body)["finish_reason"])
    history.add(stream, Told(time.monotonic(), reason))
    return reason
