"""Overload a server ten times over, with honest, long, whole and hostile requests mixed.

    python -m benchmarks.overload

The mock engine has a known capacity: 8 slots of 50 tokens a second. The benchmark first measures an
idle server: its health checks, its refusals of invalid requests, and its capacity with exactly as
many clients as slots. Then requests come at ten times that rate, however fast the server answers.
It takes about 80 seconds. `--out FILE` also writes the figures as JSON.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from benchmarks.admission.asking import TimedResponse, ask, generate
from benchmarks.report import Figures, circumstances, prepare_client, show, spread_ms
from tests.support.raw import post, request
from tests.support.servers import serve

MODULE = "benchmarks.overload"
NUM_SLOTS = 8
TOKEN_S = 0.02
MAX_QUEUE = 64
SHORT, LONG = 20, 60
# The shares of the requests, in percent.
MIX = {"streamed": 55, "whole": 20, "long": 10, "invalid": 5, "reset": 5, "huge": 3, "silent": 2}
TOKENS = {"streamed": SHORT, "whole": SHORT, "long": LONG}
HEALTH = request("GET", "/health", "Connection: close")
HEALTH_EVERY_S = 0.1
HOLD_S = 5.0
HUGE_BODY = json.dumps({"prompt": "x" * 6_000_000}).encode()


@dataclass
class Seen:
    """The answers during one phase, and when they were complete."""

    answers: list[tuple[str, float, TimedResponse]] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    unanswered: collections.Counter[str] = field(default_factory=collections.Counter)

    def tokens_per_s(self, begin: float, end: float) -> float:
        """Return the tokens per second of the whole answers between two moments."""
        tokens = sum(
            TOKENS[kind]
            for kind, at, answer in self.answers
            if kind in TOKENS and answer.status == 200 and begin <= at < end
        )
        return tokens / (end - begin)

    def refusals_s(self, status: int) -> list[float]:
        """Return how long each refusal with this status took."""
        return [answer.seconds for _, _, answer in self.answers if answer.status == status]


async def send(port: int, kind: str, seen: Seen) -> None:
    """Send a request of this kind and note the answer."""
    try:
        if kind in TOKENS:
            tokens = TOKENS[kind]
            if kind == "whole":
                answer = await asked(
                    port, generate("", "Connection: close", max_tokens=tokens, stream=False)
                )
            else:
                answer = await ask(port, max_tokens=tokens)
        elif kind == "invalid":
            answer = await asked(port, generate("", "Connection: close", max_tokens=0))
        elif kind == "huge":
            answer = await asked(port, post(HUGE_BODY, "Connection: close"))
        else:
            await misbehave(port, kind)
            return
    except (OSError, EOFError):
        seen.unanswered[kind] += 1
        return
    seen.answers.append((kind, time.monotonic(), answer))


async def asked(port: int, sent: bytes) -> TimedResponse:
    """Send a request on a new connection and read the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        began = time.perf_counter()
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):
            await reader.read()
        return TimedResponse(int(head.split()[1]), time.perf_counter() - began)
    finally:
        writer.close()


async def misbehave(port: int, kind: str) -> None:
    """Reset a request that was just sent, or hold half of one."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = generate("", max_tokens=LONG)
    writer.write(sent if kind == "reset" else sent[:40])
    await asyncio.sleep(0.05 if kind == "reset" else HOLD_S)
    writer.transport.abort()


async def check_health(port: int, seen: Seen) -> None:
    """Ask for the server's health for ever, on a new connection each time."""
    while True:
        answer = await asked(port, HEALTH)
        assert answer.status == 200
        seen.health_s.append(answer.seconds)
        await asyncio.sleep(HEALTH_EVERY_S)


async def idle(port: int, seconds: float) -> Seen:
    """Measure health checks and refusals while nothing else happens."""
    seen = Seen()
    checking = asyncio.create_task(check_health(port, seen))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await send(port, "invalid", seen)
        await asyncio.sleep(HEALTH_EVERY_S)
    checking.cancel()
    return seen


async def capacity(port: int, seconds: float) -> float:
    """Return the tokens per second with as many clients as slots."""
    seen = Seen()
    begin = time.monotonic()

    async def client() -> None:
        while time.monotonic() < begin + seconds:
            await send(port, "streamed", seen)

    await asyncio.gather(*(client() for _ in range(NUM_SLOTS)))
    return seen.tokens_per_s(begin, time.monotonic())


async def overload(port: int, rate: float, seconds: float, seed: int) -> tuple[Seen, float, float]:
    """Send requests at `rate` for `seconds`. Return also the goodput and the sender's delay."""
    seen = Seen()
    chance = random.Random(seed)
    checking = asyncio.create_task(check_health(port, seen))
    running: set[asyncio.Task[None]] = set()
    kinds = chance.choices(list(MIX), weights=list(MIX.values()), k=round(rate * seconds))
    begin = time.monotonic()
    late = 0.0
    for number, kind in enumerate(kinds):
        wait = begin + number / rate - time.monotonic()
        late = max(late, -wait)
        await asyncio.sleep(max(0.0, wait))
        task = asyncio.create_task(send(port, kind, seen))
        running.add(task)
        task.add_done_callback(running.discard)
    end = time.monotonic()
    goodput = seen.tokens_per_s(begin + 0.2 * seconds, end)
    checking.cancel()
    await asyncio.gather(*running)
    return seen, goodput, late


async def measure(times: float, seconds: float, seed: int) -> Figures:
    """Measure an idle server, its capacity, and the same server overloaded `times` times."""
    flags: dict[str, object] = {"slots": NUM_SLOTS, "max_queue": MAX_QUEUE, "engine": "mock"}
    flags |= {"mock_interval": TOKEN_S, "engine_arg": ["length=100000"]}
    with serve(**flags) as server:
        before = await idle(server.port, seconds / 4)
        full = await capacity(server.port, seconds / 3)
        share = sum(MIX[kind] * tokens for kind, tokens in TOKENS.items()) / sum(MIX.values())
        rate = times * full / share
        seen, goodput, late = await overload(server.port, rate, seconds, seed)
    statuses = collections.Counter(f"{kind}: {each.status}" for kind, _, each in seen.answers)
    return {
        "capacity, tokens/s": round(full, 1),
        "offered, requests/s": round(rate, 1),
        "offered, tokens/s": round(rate * share, 1),
        "goodput, tokens/s": round(goodput, 1),
        "goodput, share of capacity": round(goodput / full, 3),
        "sender behind its schedule, s": round(late, 2),
        "health, idle": spread_ms(before.health_s),
        "health, overloaded": spread_ms(seen.health_s),
        "refusal of an invalid request (422), idle": spread_ms(before.refusals_s(422)),
        "refusal of a full queue (429), overloaded": spread_ms(seen.refusals_s(429)),
        "refusal of a huge body (413), overloaded": spread_ms(seen.refusals_s(413)),
        "answers": dict(sorted(statuses.items())),
        "without an answer": dict(seen.unanswered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=float, default=10.0, help="the load, in capacities")
    parser.add_argument("--seconds", type=float, default=45.0, help="how long to overload")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    arguments = parser.parse_args()
    prepare_client()
    figures = uvloop.run(measure(arguments.times, arguments.seconds, arguments.seed))
    show(MODULE, "overload", figures)
    if arguments.out is not None:
        found = {"figure": "overload", **circumstances(MODULE), **figures}
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
