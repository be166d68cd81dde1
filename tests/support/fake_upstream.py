"""An upstream that says what a test wants: vLLM's routes, or those of another server, with faults.

The routes and shapes of "sglang" are those of SGLang 0.5.23, of "old sglang" those before it, and
of "ollama" those of Ollama 0.33.

The model is simple: a prompt of n words has the tokens 0 to n - 1, and the token at place p of the
whole text has the id p and the text "p ". So the answer to three words is "3 4 5 ", wherever it is
continued. If anything binds the answer, it is `BOUND`. Log probabilities have the forms of vLLM's
own routes. A fault is a function that gets the exchange and does what it likes with its connection.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.support.ports import free_port
from tests.support.tcp_server import TcpServer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
BOUND = ('{"', "lake", '"', ":5", "}")
"""The pieces of an answer that something binds."""
BONDS = {"response_format", "structured_outputs", "regex", "ebnf", "grammar", "json_schema"}
LOGPROB = -0.5
OWNERS = {"vllm": "vllm", "sglang": "sglang", "old sglang": "sglang", "ollama": "library"}


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

    @property
    def is_bound(self) -> bool:
        """Whether something binds the answer, and the upstream keeps to it."""
        return self.upstream.binds and not BONDS.isdisjoint(self.body)

    @property
    def length(self) -> int:
        """How many tokens the answer has."""
        limit: int = self.body["max_tokens"]
        return min(limit, len(BOUND)) if self.is_bound else limit

    def token(self, place: int) -> dict[str, Any]:
        """Return the event with the token at a place."""
        text = BOUND[place - self.first] if self.is_bound else f"{place} "
        choice: dict[str, Any] = {"index": 0}
        if self.path.endswith("/chat/completions"):
            choice["delta"] = {"content": text}
            asked = self.body.get("logprobs") and self.body["top_logprobs"]
            logprobs: Any = chat_logprobs(text, asked or 0)
        else:
            choice["text"] = text
            asked = self.body.get("logprobs")
            logprobs = completion_logprobs(text, asked or 0)
            if self.body.get("return_token_ids") and self.upstream.kind != "old sglang":
                choice["token_ids"] = [place]
        if asked is not None and self.upstream.reports_logprobs:
            choice["logprobs"] = logprobs
        if self.upstream.kind == "ollama" and "text" in choice:
            return {"choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
        return {"choices": [choice]}

    async def tokens(self, number: int) -> None:
        """Send the head and the first tokens of the answer."""
        await self.send(HEAD, *(event(self.token(self.first + n)) for n in range(number)))

    def prompt_logprobs(self) -> list[dict[str, Any] | None]:
        """Return the log probabilities of the prompt, as vLLM sends them: by the tokens' ids.

        Each token has the rank 5.
        """
        num_top = self.body["prompt_logprobs"]

        def entry(token: int, rank: int) -> dict[str, Any]:
            return {"logprob": -float(rank), "rank": rank, "decoded_token": f"{token} "}

        def place(token: int) -> dict[str, Any]:
            likely = {str(100 + rank): entry(100 + rank, rank) for rank in range(1, num_top + 1)}
            return {str(token): entry(token, 5)} | likely

        return [None, *(place(token) for token in self.body["prompt"][1:])]

    async def answer(self, pause: float = 0.0) -> None:
        """Send the whole answer."""
        if "prompt_logprobs" in self.body:
            choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}
            found = {"prompt_logprobs": self.prompt_logprobs(), "token_ids": None}
            await self.whole({"object": "text_completion", "choices": [{**choice, **found}]})
            return
        number = self.length
        await self.send(HEAD)
        for place in range(self.first, self.first + number):
            if pause:
                await asyncio.sleep(pause)
            await self.send(event(self.token(place)))
        reason = "stop" if number < self.body["max_tokens"] else "length"
        choice = {"index": 0, "text": "", "delta": {}, "token_ids": None, "logprobs": None}
        ending = {"choices": [{**choice, "finish_reason": reason}]}
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


def chat_logprobs(text: str, num_top: int) -> dict[str, Any]:
    """Return the log probabilities of a chat's token, as vLLM sends them."""

    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    ranked = [entry(text, LOGPROB), *(entry(f"<{n}>", LOGPROB - n) for n in range(1, num_top))]
    return {"content": [{**ranked[0], "top_logprobs": ranked[:num_top]}]}


def completion_logprobs(text: str, num_top: int) -> dict[str, Any]:
    """Return the log probabilities of a completion's token, as vLLM sends them: one too many."""
    ranked = {text: LOGPROB} | {f"<{n}>": LOGPROB - n for n in range(1, num_top + 1)}
    lists = {"text_offset": [0], "tokens": [text], "token_logprobs": [LOGPROB]}
    return {**lists, "top_logprobs": [ranked]}


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
        self.binds = self.reports_logprobs = True
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.asked: list[Exchange] = []
        """The answers that were asked for."""
        self.looks: list[str] = []
        """The paths of all other requests."""
        self.gone: dict[asyncio.StreamWriter, asyncio.Event] = {}
        self.lies: dict[str, Fault] = {}
        """What it says at other routes than those for answers."""
        self.host, self.port = "127.0.0.1", 0
        self.name = self.host
        """Its name in its URL."""
        self.tls: ssl.SSLContext | None = None
        self.weight = 1.0
        self.reasoning_parser: str | None = None
        self._server = TcpServer(self._serve)

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{self.name}:{self.port}"

    async def open(self) -> None:
        """Listen, at the same port each time."""
        self.port = self.port or free_port()
        await self._server.open(self.host, self.port, self.tls)

    async def close(self) -> None:
        """Stop listening, and reset every connection."""
        await self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        finally:
            if watch is not None:
                watch.cancel()
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
            return
        self.looks.append(exchange.path)
        if exchange.path in self.lies:
            await self.lies[exchange.path](exchange)
        elif exchange.path == "/v1/models":
            facts: dict[str, Any] = {"owned_by": OWNERS.get(self.kind, "somebody")}
            if self.kind != "ollama":
                facts["max_model_len"] = self.context
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
        elif exchange.path == "/model_info" and self.kind == "sglang":
            parser = {"reasoning_parser": self.reasoning_parser}
            await exchange.whole({"model_path": "fake", **parser})
        elif exchange.path == "/get_model_info" and self.kind == "old sglang":
            await exchange.whole({"model_path": "fake"})
        elif exchange.path == "/api/version" and self.kind == "ollama":
            await exchange.whole({"version": "0.33.0"})
        elif exchange.path == "/tokenize" and self.kind in ("vllm", "sglang", "old sglang"):
            await self._tokenize(exchange)
        elif exchange.path == "/detokenize" and self.kind == "vllm":
            await exchange.whole({"prompt": "".join(f"{p} " for p in exchange.body["tokens"])})
        else:
            await exchange.whole({"error": "no such route"}, "404 Not Found")

    async def _tokenize(self, exchange: Exchange) -> None:
        body = exchange.body
        opens = body.get("add_generation_prompt")
        if self.kind == "sglang" and opens is False and body.get("continue_final_message"):
            await exchange.whole({"object": "error", "code": 400}, "400 Bad Request")
            return
        turns = [each["content"] for each in body.get("messages", ())]
        if turns and self.kind == "sglang" and opens is False:
            turns.append("closed")
        text = body.get("prompt", " ".join(turns))
        await exchange.whole({"tokens": list(range(self.words * len(text.split())))})


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
