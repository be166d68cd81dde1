"""The attacks of the mix, each a small function that a hostile client runs once.

In: the server under attack, and a source of chance. Out: the statuses that the client got. What
honest clients see meanwhile is judged elsewhere (see `mix`).
"""

import asyncio
import contextlib
import json
import random
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.attacks import test_headers
from tests.attacks.certificates import BAD, TlsFiles, good, trusting
from tests.attacks.fuzz import all_of, http1, http2, json_bodies
from tests.faults.processes import signal_engine, until_readiness
from tests.support.answers import Answer
from tests.support.raw import post, request
from tests.support.servers import RunningServer
from tests.support.wire import Wire, connected
from tests.wire.test_mutations import mutant

ANSWER_S = 60.0
HOLD_S = 3.0
"""How long a client that does nothing keeps its connections."""
CAREFUL_KINDS = ("P-521", "BOM before the key", "another's key", "half of the key", "nothing")


@dataclass
class Target:
    """A server under attack. `key` is the attacker's own."""

    server: RunningServer
    key: str = ""
    context: ssl.SSLContext | None = None
    keys: Path | None = None
    """The file of keys, if the attack may damage it."""
    tls_files: TlsFiles | None = None
    statuses: dict[int, int] = field(default_factory=dict)
    """How many answers had each status."""
    wrong: list[str] = field(default_factory=list)
    """What an attacker got that nobody may get, such as an internal error."""

    def post(self, fields: object, path: str = "/generate", *headers: str) -> bytes:
        """Return a request with the attacker's key. `fields` is a value, or the body itself."""
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        return post(body, f"Authorization: Bearer {self.key}", *headers, path=path)

    @contextlib.asynccontextmanager
    async def connect(self, *, receive_buffer: int = 0) -> AsyncIterator[Wire]:
        """Open a connection; an attacker does not mind if there is none."""
        opening = connected(self.server.address, self.context, receive_buffer=receive_buffer)
        async with opening as wire:
            yield wire

    async def ask(self, sent: bytes) -> Answer | None:
        """Send a request and note the answer's status."""
        try:
            async with asyncio.timeout(ANSWER_S), self.connect() as wire:
                answer = await wire.send(sent).answer()
        except (OSError, EOFError):  # TimeoutError is an OSError
            self.note(0)
            return None
        self.note(answer.status)
        if answer.status == 500:
            self.wrong.append(f"internal error: {sent[:200].decode('latin-1')}")
        return answer

    def note(self, status: int) -> None:
        """Count an answer; 0 stands for none."""
        self.statuses[status] = self.statuses.get(status, 0) + 1


Attack = Callable[[Target, random.Random], Awaitable[None]]


def _chat(content: object, **fields: object) -> dict[str, object]:
    return {"model": "rill", "messages": [{"role": "user", "content": content}], **fields}


async def hostile_bodies(target: Target, chance: random.Random) -> None:
    """Send bodies that are large, deep, or wrong in every item."""
    zeros = [0] * chance.choice((10, 100_000, 1_000_000))
    bodies: list[object] = [
        _chat(zeros),
        _chat("a", modalities=zeros),
        _chat("a", stop=["x" * 256] * 4, n=4, max_tokens=2),
        _chat("a", logit_bias={str(n): 1 for n in range(100_000)}),
        {"messages": [{"role": "user", "content": "a"}] * 100_000},
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 1_000_000,
        b'{"prompt": ' + b"9" * 100_000 + b"}",
        b'{"prompt": "' + b"\\ud800" * 10_000 + b'"}',
        b"\xff" * 1_000_000,
        b"{" + b",".join(b'"k%d":1' % n for n in range(100_000)) + b"}",
        b"",
    ]
    path = chance.choice(("/generate", "/v1/chat/completions", "/v1/completions"))
    await target.ask(target.post(chance.choice(bodies), path))


async def resets(target: Target, chance: random.Random) -> None:
    """Send requests and reset each connection at once."""
    sent = target.post({"prompt": "Once upon a time", "max_tokens": 200})
    for _ in range(50):
        with contextlib.suppress(OSError):
            async with target.connect() as wire:
                wire.send(sent[: len(sent) if chance.random() < 0.9 else chance.randrange(1, 200)])
                wire.reset()


async def cancel_storm(target: Target, chance: random.Random) -> None:
    """Open streams and leave each after a few bytes."""

    async def once() -> None:
        with contextlib.suppress(OSError, EOFError):
            async with asyncio.timeout(HOLD_S), target.connect() as wire:
                wire.send(target.post({"prompt": "Once", "max_tokens": 300}))
                await wire.until(b"data: " if chance.random() < 0.5 else b"HTTP/1.1")

    await asyncio.gather(*(once() for _ in range(20)))


async def long_prompts(target: Target, chance: random.Random) -> None:
    """Send prompts that are too long, in characters or in tokens."""
    size = chance.choice((20_000, 200_000, 3_000_000))
    text = chance.choice(("a ", "ab", "\u4e00", "9", "\n"))
    prompt = (text * size)[:size]
    if chance.random() < 0.5:
        await target.ask(target.post({"prompt": prompt, "max_tokens": 1}))
    else:
        await target.ask(target.post(_chat(prompt, max_tokens=1), "/v1/chat/completions"))


async def schema_bombs(target: Target, chance: random.Random) -> None:
    """Ask for answers under schemas, expressions and grammars that take long to compile."""
    many = [{"pattern": f"^(.*ab{n}.*){{20}}$"} for n in range(27)]
    schemas: list[object] = [
        {"type": "integer", "multipleOf": chance.choice((86_400_000, 2_000_003, 10_000_019))},
        {"type": "string", "allOf": many},
        {"type": "string", "pattern": "(" * 50 + "a" + ")*" * 50},
        {"type": "array", "items": {"type": "string"}, "minItems": 100_000},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5000)}},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "minLength": 1_000_000},
    ]
    schema = chance.choice(schemas)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    bodies = [
        _chat("a", response_format=form, max_tokens=3),
        _chat("a", guided_regex="(a*)*" * 40 + "b", max_tokens=3),
        _chat("a", guided_grammar="root ::= " + "(" * 500 + '"a"' + ")" * 500, max_tokens=3),
        _chat(
            "a",
            tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}],
            max_tokens=3,
        ),
    ]
    await target.ask(target.post(chance.choice(bodies), "/v1/chat/completions"))


async def silent_connections(target: Target, chance: random.Random) -> None:
    """Hold connections that ask nothing, or only half a question."""
    whole = target.post({"prompt": "a", "max_tokens": 1})
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(60):
            with contextlib.suppress(OSError):
                wire = await stack.enter_async_context(target.connect())
                wire.send(chance.choice((b"", b"GET /hea", whole[:-3])))
        await asyncio.sleep(HOLD_S)


async def slow_bodies(target: Target, chance: random.Random) -> None:
    """Hold the beginnings of large bodies."""
    head = target.post(b"", "/generate").replace(b"Content-Length: 0", b"Content-Length: 4000000")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(15):
            with contextlib.suppress(OSError):
                wire = await stack.enter_async_context(target.connect())
                wire.send(head + b" " * chance.randrange(1_000_000))
        await asyncio.sleep(HOLD_S)


async def slow_readers(target: Target, chance: random.Random) -> None:
    """Open streams and read nothing of them."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            with contextlib.suppress(OSError):
                wire = await stack.enter_async_context(target.connect(receive_buffer=2048))
                wire.transport.pause_reading()
                fields = {"prompt": "Once upon a time", "max_tokens": 2000, "resumable": True}
                wire.send(target.post(fields))
        await asyncio.sleep(HOLD_S * chance.random())


async def flood(target: Target, chance: random.Random) -> None:
    """Send many ordinary requests at once."""
    sent = target.post({"prompt": "Once", "max_tokens": chance.randrange(1, 30), "stream": False})
    await asyncio.gather(*(target.ask(sent) for _ in range(40)))


async def mutants(target: Target, chance: random.Random) -> None:
    """Send damaged requests."""
    for _ in range(30):
        with contextlib.suppress(OSError):
            async with asyncio.timeout(HOLD_S), target.connect() as wire:
                await wire.send(mutant(chance.randrange(10**9))).until_closed()


async def fuzz(target: Target, chance: random.Random) -> None:
    """Run the fuzzers with seeds of this run."""
    seeds = [chance.randrange(10**9) for _ in range(20)]
    context = target.context
    target.wrong += await all_of(http1(target.server, seed, context) for seed in seeds)
    if context is not None:
        of_http2 = trusting()
        of_http2.set_alpn_protocols(["h2"])
        target.wrong += await all_of(http2(target.server, seed, of_http2) for seed in seeds)
        return
    try:
        await asyncio.to_thread(
            json_bodies, target.server, len(seeds), derandomize=False, key=target.key
        )
    except AssertionError as error:
        target.wrong.append(f"a fuzzed body: {error}")


async def odd_headers(target: Target, chance: random.Random) -> None:
    """Send headers with odd values."""
    for _ in range(20):
        route = chance.choice([each for each in test_headers.ROUTES if b"HEAD" not in each])
        name, value = chance.choice(test_headers.HEADERS), chance.choice(test_headers.VALUES)
        await target.ask(test_headers.built(route, name, value))


async def wrong_keys(target: Target, chance: random.Random) -> None:
    """Guess keys."""
    for _ in range(30):
        guess = "psk_" + "".join(chance.choices("abcdefghij0123456789", k=43))
        await target.ask(request("GET", "/v1/models", f"Authorization: Bearer {guess}"))


async def broken_keys(target: Target, chance: random.Random) -> None:
    """Damage the file of keys, have it read, and mend it: nobody loses a key."""
    if target.keys is None:
        return
    whole = target.keys.read_bytes()
    damaged = (b"", b"\xff\xfe", whole[: len(whole) // 2], b"[keys", b"keys = 1\n")
    target.keys.write_bytes(chance.choice(damaged))
    target.server.signal(signal.SIGHUP)
    await asyncio.sleep(HOLD_S / 3)
    target.keys.write_bytes(whole)
    target.server.signal(signal.SIGHUP)
    await asyncio.sleep(HOLD_S)


async def broken_certificates(target: Target, chance: random.Random) -> None:
    """Damage the files of TLS, and mend them."""
    if target.tls_files is None:
        return
    target.tls_files.write(BAD[chance.choice(CAREFUL_KINDS)]())
    await asyncio.sleep(HOLD_S)
    target.tls_files.write(good())
    await asyncio.sleep(HOLD_S)


ATTACKS: tuple[Attack, ...] = (
    *(hostile_bodies, resets, cancel_storm, long_prompts, schema_bombs, silent_connections),
    *(slow_bodies, slow_readers, flood, mutants, fuzz, odd_headers, wrong_keys),
)
"""The attacks of a client. Any number of them may run at once."""
FAULTS: tuple[Attack, ...] = (broken_keys, broken_certificates)
"""The mishaps of an operator, one at a time."""


async def break_engine(target: Target, chance: random.Random) -> signal.Signals:
    """Kill or stop the engine, and wait until it is back."""
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP))
    signal_engine(target.server, number)
    await asyncio.sleep(HOLD_S)
    await until_readiness(target.server.address, 200, within=2 * ANSWER_S)
    return number
