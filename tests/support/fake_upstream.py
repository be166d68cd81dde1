"""An upstream that says what a test wants: vLLM's routes, or those of another server, with faults.

The model is simple: a prompt of n words has the tokens 0 to n - 1, and the token at place p of the
whole text has the id p and the text "p ". So the answer to three words is "3 4 5 ", wherever it is
continued. A fault is a function that gets the exchange and does what it likes with its connection.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: object) -> bytes:
    return chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


class Exchange:
    """One request at the upstream, and its connection."""

    def __init__(
        self,
        upstream: "FakeUpstream",
        path: str,
        headers: dict[str, str],
        body: Any,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.upstream, self.path, self.headers, self.body = upstream, path, headers, body
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
        await self.writer.drain()

    async def whole(self, value: object, status: str = "200 OK") -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        await self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body)

    @property
    def first(self) -> int:
        """The place of the first token of the answer."""
        if "prompt" not in self.body:
            words = " ".join(each["content"] for each in self.body["messages"]).split()
            return len(words)
        prompt = self.body["prompt"]
        return len(prompt.split() if isinstance(prompt, str) else prompt)

    def token(self, place: int) -> dict[str, Any]:
        """Return the event with the token at a place."""
        if self.path.endswith("/chat/completions"):
            return {"choices": [{"index": 0, "delta": {"content": f"{place} "}}]}
        choice: dict[str, Any] = {"index": 0, "text": f"{place} "}
        if self.body.get("return_token_ids"):
            choice["token_ids"] = [place]
        return {"choices": [choice]}

    async def tokens(self, number: int) -> None:
        """Send the head and the first tokens of the answer."""
        await self.send(HEAD, *(event(self.token(self.first + n)) for n in range(number)))

    async def answer(self, pause: float = 0.0) -> None:
        """Send the whole answer."""
        number = self.body["max_tokens"]
        await self.send(HEAD)
        for place in range(self.first, self.first + number):
            if pause:
                await asyncio.sleep(pause)
            await self.send(event(self.token(place)))
        ending = self.token(0)
        ending["choices"][0] |= {"finish_reason": "length", "text": "", "token_ids": None}
        ending["choices"][0].pop("delta", None)
        usage = {"prompt_tokens": self.first, "completion_tokens": number}
        await self.send(event(ending), event({"choices": [], "usage": usage}))
        await self.send(chunk(b"data: [DONE]\n\n"), END)

    def cut(self) -> None:
        """Close the connection as a clean program does."""
        self.writer.close()

    def reset(self) -> None:
        """Close the connection as a crash does."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until_gone(self) -> None:
        """Wait until the other side has closed the connection."""
        await self.upstream.gone[self.writer].wait()


Fault = Callable[[Exchange], Awaitable[None]]


class FakeUpstream:
    """One upstream. `faults` are for its next answers, in order; then it answers well."""

    def __init__(
        self, kind: str = "vllm", words: int = 1, context: int = 100_000, model: str = "fake"
    ) -> None:
        self.kind = kind
        self.model = model
        self.other_models: list[str] = []
        self.words = words  # another number makes another vocabulary
        self.context = context
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.asked: list[Exchange] = []
        """The answers that were asked for."""
        self.gone: dict[asyncio.StreamWriter, asyncio.Event] = {}
        self.port = 0
        self.weight = 1.0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, and reset every connection."""
        if self._server is not None:
            self._server.close()
        for writer in list(self.gone):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes the aborted connections now

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.gone[writer] = asyncio.Event()
        watch = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            watch = asyncio.create_task(self._watch(reader, writer))
            path = first.split(" ")[1]
            exchange = Exchange(self, path, headers, json.loads(body or b"null"), writer)
            await self._respond(exchange)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side may leave at any time, and so may the test
        finally:
            if watch is not None:
                watch.cancel()
            writer.close()
            self._tasks.discard(task)
            del self.gone[writer]

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        if writer in self.gone:
            self.gone[writer].set()

    async def _respond(self, exchange: Exchange) -> None:
        if exchange.path in ("/v1/completions", "/v1/chat/completions"):
            self.asked.append(exchange)
            fault = self.faults.pop(0) if self.faults else self.always
            await (exchange.answer() if fault is None else fault(exchange))
        elif exchange.path == "/v1/models":
            owner = "vllm" if self.kind == "vllm" else "somebody"
            facts = {"owned_by": owner, "max_model_len": self.context}
            names = [self.model, *self.other_models]
            await exchange.whole({"data": [{"id": name, **facts} for name in names]})
        elif exchange.path == "/props" and self.kind == "penstock":
            settings = {"n_ctx": self.context}
            own = {"supports": ["return_token_ids"], "vocabulary_size": 0}
            props = {"default_generation_settings": settings, "build_info": "penstock 1"}
            await exchange.whole({**props, "penstock": own})
        elif exchange.path == "/health/ready" and self.kind == "penstock":
            await exchange.whole({"status": "draining"}, "503 Service Unavailable")
        elif exchange.path == "/version" and self.kind == "vllm":
            await exchange.whole({"version": "0.32.0"})
        elif exchange.path == "/get_model_info" and self.kind == "sglang":
            await exchange.whole({"model_path": "fake"})
        elif exchange.path == "/tokenize" and self.kind == "vllm":
            body = exchange.body
            text = body.get("prompt", "".join(m["content"] for m in body.get("messages", ())))
            await exchange.whole({"tokens": list(range(self.words * len(text.split())))})
        else:
            await exchange.whole({"error": "no such route"}, "404 Not Found")


@contextlib.asynccontextmanager
async def fakes(*upstreams: FakeUpstream) -> AsyncIterator[None]:
    """Run these upstreams."""
    for each in upstreams:
        await each.open()
    try:
        yield
    finally:
        for each in upstreams:
            await each.close()
