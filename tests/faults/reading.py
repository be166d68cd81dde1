"""Readers that open streams, are cut, resume by Last-Event-ID or leave, and record what they see.

In: a server's address and the request's fields. Out: entries of a history. It does not know what
is right (see `checker`), and shares no code with Penstock's own client.
"""

import asyncio
import itertools
import json
import time
from typing import Any, Literal

from tests.faults.client_request import Exchange, Head, Send, fetch, request_bytes, send_request
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
"""Seconds between two attempts to reach a server that is down or has no engine."""

_numbers = itertools.count(1)


def fresh_word(letters: int = 0) -> str:
    """Return a word of at least `letters` letters that no other stream has."""
    return f"w{next(_numbers)}".ljust(letters, "x")


class RefusedError(Exception):
    """A request got a status other than 200."""

    def __init__(self, head: Head, body: bytes) -> None:
        super().__init__(f"{head.status} {body[:300]!r}")
        self.status = head.status
        try:
            self.code = str(json.loads(body)["code"])
        except (ValueError, LookupError, TypeError):
            self.code = ""


class Reader:
    """A logical reader of one stream. `cursor` is the id of its last event, or -1 for none."""

    def __init__(
        self,
        address: Address,
        history: History,
        *,
        source: str = "",
        headers: tuple[str, ...] = (),
        send: Send = send_request,
    ) -> None:
        self.address = address
        self.headers = headers
        """The headers of every request."""
        self.name = f"r{next(_numbers)}"
        self.stream = ""
        self.cursor = -1
        self.ended: Ended | None = None
        self.is_resumable = True
        self.num_comments = 0
        self.arrivals: list[float] | None = None
        """When each event came, if a caller sets a list."""
        self.receive_buffer = 0
        self.send = send
        """What sends each request."""
        self._history = history
        self._source = source
        self._parser = EventParser()
        self._request: Exchange | None = None
        self._body: bytearray | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    # Responses.

    async def open(self, truth: Truth, *, resumable: bool = True, **fields: Any) -> None:
        """Open a stream. Raises OSError or RefusedError if there is no stream."""
        self.is_resumable = resumable
        asked = {"prompt": f"{truth.word or 'Hello'} says", "stream": True, **fields}
        if resumable:
            asked["resumable"] = True
        body = json.dumps(asked).encode()
        head = await self._ask(request_bytes("POST", "/generate", *self.headers, body=body))
        self.stream = head.headers["x-stream-id"]
        self._history.open(self.stream, truth)
        self._attached()

    async def attach(self, stream: str = "", *, by: Literal["header", "query"] = "header") -> None:
        """Read the stream after the cursor. Raises OSError or RefusedError."""
        self.stream = stream or self.stream
        path, headers = f"/streams/{self.stream}", [*self.headers]
        if self.cursor >= 0 and by == "query":
            path += f"?after={self.cursor}"
        elif self.cursor >= 0:
            headers.append(f"Last-Event-ID: {self.stream}.{self.cursor}")
        await self._ask(request_bytes("GET", path, *headers))
        self._attached()

    async def closed(self) -> How:
        """Wait until the response ends. Returns how it ended."""
        how = await self.request.ended
        self._request = None
        self._detached(how)
        return how

    async def got(self, index: int) -> None:
        """Wait until event `index` comes. Raises ConnectionError if the response ends first."""
        if self.cursor >= index:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((index, waiter))
        await asyncio.wait((waiter, self.request.ended), return_when=asyncio.FIRST_COMPLETED)
        if self.cursor < index:
            raise ConnectionResetError(f"the response ended at event {self.cursor} of {index}")

    async def read_through(self, patience: float = PATIENCE_S) -> Ended:
        """Read to the terminal event, resuming as often as necessary."""
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

    # Leaving.

    def forget(self) -> None:
        """Drop a request whose response has not begun."""
        if self._request is not None:
            self._request.leave("RST")
            self._request = None

    def leave(self, how: CloseKind = "FIN") -> None:
        """Leave. The server must then cancel a stream that cannot be resumed."""
        if self._request is not None:
            if not self.is_resumable and self.ended is None:
                self._history.add(self.stream, Abort(time.monotonic(), "disconnect"))
            self._request.leave(how)
            self._detached("left")
            self._request = None

    def stop_reading(self) -> None:
        """Keep the connection, but stop reading."""
        self.request.stop_reading()

    def read_on(self) -> None:
        """Resume reading."""
        self.request.read_on()

    @property
    def request(self) -> Exchange:
        """The current request and its response."""
        assert self._request is not None
        return self._request

    @property
    def has_response(self) -> bool:
        """True if there is a response whose end is not yet recorded."""
        return self._request is not None

    @property
    def is_over(self) -> bool:
        """True if the response has ended in any way."""
        return self._request is None or self._request.ended.done()

    @property
    def port(self) -> int:
        """The local port of this reader's connection."""
        return int(self.request.socket.getsockname()[1])

    # The response.

    async def _ask(self, request: bytes) -> Head:
        self._parser = EventParser()
        self._body = bytearray()
        answer = await self.send(
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
        # Bytes that came with the head can be recorded now that the stream's id is known.
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
        event_id = None
        if event.last_id is not None or self.is_resumable:
            stream, _, number = (event.last_id or "").rpartition(".")
            event_id = int(number) if stream == self.stream else -1  # which the checker reports
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
    """Cancel a stream by DELETE and return how it ended. Raises OSError or RefusedError."""
    history.add(stream, Abort(time.monotonic(), "delete"))
    return await ask_how_it_ended(address, history, stream)


async def ask_how_it_ended(address: Address, history: History, stream: str) -> str:
    """DELETE a stream that should have ended and return how. Raises OSError or RefusedError."""
    head, body = await fetch(address, request_bytes("DELETE", f"/streams/{stream}"))
    if head.status != 200:
        raise RefusedError(head, body)
    reason = str(json.loads(body)["finish_reason"])
    history.add(stream, Told(time.monotonic(), reason))
    return reason
