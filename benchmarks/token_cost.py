"""What a token costs the server's Python, from the engine's message to `send`, without sockets.

    .venv/bin/python -m benchmarks.token_cost [--tokens 200000]

Some streams run at once, each with a reader; in each turn of the event loop each gets one delta,
as one step of an engine gives them. `send` does nothing. The least processor time of thirty rounds
is told, in microseconds per token. Compare two commits on one quiet machine, alternating.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Iterator, MutableMapping
from typing import Any

import uvloop
from starlette.types import Message

from penstock.api.exchange import KEY, Exchange
from penstock.api.frames import NativeFrames
from penstock.api.pulse import Pulse
from penstock.api.response import StreamResponse
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.stream import Stream
from penstock.stream.streams import Streams

ROUNDS = 30


class Engine:
    """Takes requests and does nothing."""

    def submit(self, request: Request, sink: Stream) -> None:
        """Nothing."""

    def cancel(self, request_id: str) -> None:
        """Nothing."""

    async def until_ready(self) -> None:
        """It is."""


class Taken:
    """What Granian's `send` returns where it need not wait."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


TAKEN = Taken()


def send(message: Message) -> Awaitable[None]:
    """Take it."""
    return TAKEN


async def receive() -> Message:
    """Never comes."""
    await asyncio.Event().wait()
    return {}


async def measure(num_streams: int, num_tokens: int) -> float:
    """Seconds per token."""
    streams = Streams(Engine())
    pulse = Pulse(15, 30)
    running, responses = [], []
    for number in range(num_streams):
        stream = streams.open(Request(id=str(number), max_tokens=num_tokens, prompt="x"))
        stream.accepted((1, 2, 3))
        stream.started()
        running.append(stream)
        watch = asyncio.create_task(asyncio.sleep(3600))
        response = StreamResponse(Reader(stream), NativeFrames(), watch, pulse)
        scope: MutableMapping[str, Any] = {"type": "http", "headers": []}
        scope[KEY] = Exchange(scope, send)
        responses.append(asyncio.create_task(response(scope, receive, send)))
    await asyncio.sleep(0)
    num_steps = num_tokens // num_streams
    began = time.process_time()
    for step in range(num_steps):
        for stream in running:
            stream.delta(" token", 1, (step,))
        await asyncio.sleep(0)
    for stream in running:
        stream.finish("stop", num_steps)
    await asyncio.gather(*responses)
    return (time.process_time() - began) / (num_steps * num_streams)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=20_000)
    num_tokens = parser.parse_args().tokens
    for num_streams in (1, 64):
        best = min(uvloop.run(measure(num_streams, num_tokens)) for _ in range(ROUNDS))
        print(f"{num_streams:3} streams: {1e6 * best:.2f} µs per token")


if __name__ == "__main__":
    main()
