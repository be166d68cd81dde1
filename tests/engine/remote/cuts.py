"""Cut many streams at their upstreams: `python -m tests.engine.remote.cuts`.

Three upstreams cut about half of all answers somewhere, in one of five ways. Each answer must
arrive with every token once, and with exact counts.
"""

import argparse
import asyncio
import random
from collections.abc import Callable

from tests.support.fake_upstream import Exchange, FakeUpstream, Fault, chunk, event, fakes
from tests.support.remote import ask, remote, text_from

LENGTH = 30
PATIENCE_S = 300
CUTS = ("cut", "reset", "half an event", "error", "clean end")
REFUSALS = {"500": "500 Internal Server Error", "429": "429 Too Many Requests"}


def after(number: int, end: str) -> Fault:
    """Return a fault after `number` tokens: one of `CUTS`, or at once one of `REFUSALS`."""

    async def fault(exchange: Exchange) -> None:
        if end in REFUSALS:
            await exchange.whole({"error": {"message": "secret"}}, REFUSALS[end])
            return
        await exchange.tokens(number)
        if end == "half an event":
            await exchange.send(chunk(b'data: {"choices": [{"te'))
        elif end == "error":
            await exchange.send(event({"error": {"message": "secret"}}))
        elif end == "clean end":
            await exchange.send(b"0\r\n\r\n")
        if end == "reset":
            exchange.reset()
        else:
            exchange.cut()

    return fault


async def cut_streams(number: int, tell: Callable[[int], None] = lambda done: None) -> int:
    """Cut many streams, check all texts and counts, and return how many times one was cut."""
    chance = random.Random(19)
    upstreams = [FakeUpstream() for _ in range(3)]
    num_cuts = 0

    async def cut(exchange: Exchange) -> None:
        nonlocal num_cuts
        if chance.random() < 0.5:
            await exchange.answer()
        else:
            num_cuts += 1
            await after(chance.randrange(1, 12), chance.choice(CUTS))(exchange)

    async with fakes(*upstreams), remote(*upstreams, slots=64) as engine:
        for each in upstreams:
            each.always = cut
        sinks = [ask(engine, f"{n}", LENGTH, prompt="word " * (n % 120 + 1)) for n in range(number)]
        for n, sink in enumerate(sinks):
            await sink.end(PATIENCE_S)
            assert sink.failure is None, sink.failure
            assert sink.text() == text_from(n % 120 + 1, LENGTH)
            assert (sink.completion_tokens, sink.num_tokens) == (LENGTH, LENGTH)
            tell(n + 1)
    return num_cuts


def main() -> None:
    """Cut the streams and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    number = parser.parse_args().streams
    num_cuts = asyncio.run(cut_streams(number))
    print(f"{number} streams were cut {num_cuts} times: every text and every count is right")


if __name__ == "__main__":
    main()
