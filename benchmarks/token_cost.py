"""What a token costs the server's Python, from the engine's word to `send`, without sockets.

    python -m benchmarks.token_cost [--tokens 200000] [--route openai]

Some streams run at once, each with a reader; in each turn of the event loop each gets one delta,
as one step of an engine gives them. `send` does nothing. The least processor time of thirty rounds
is told, in microseconds per token. Compare two commits on one quiet machine, alternating.

`tests/test_token_cost.py` counts the calls of the same work, which no machine's noise can change.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Generator, MutableMapping
from typing import Any, Literal

import uvloop
from starlette.types import Message

from penstock.api.dialect import Form
from penstock.api.native.frames import NativeForm
from penstock.api.openai.frames import ChatForm
from penstock.engine.protocol import LosableSink
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream
from penstock.web.access import KEY, Access
from penstock.web.delivery import ConnectedReader, StreamResponse
from penstock.web.granian import GranianWriter
from penstock.web.liveness import Liveness
from tests.support.scripted import EngineInTest

ROUNDS = 30
Route = Literal["native", "openai"]


class Engine(EngineInTest):
    """Takes requests and does nothing."""

    def submit(self, request: Request, sink: LosableSink) -> None:
        """Nothing."""

    def cancel(self, request_id: str) -> None:
        """Nothing."""


class Taken:
    """What a server's `send` returns where it need not wait."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


TAKEN = Taken()


def send(message: Message) -> Awaitable[None]:
    """Take it."""
    return TAKEN


async def receive() -> Message:
    """Never comes."""
    await asyncio.Event().wait()
    return {}


class Load:
    """So many streams that are being sent; made in a running loop."""

    def __init__(self, num_streams: int, route: Route) -> None:
        self._streams = Streams([Engine()])
        self._liveness = Liveness(15, 30)
        self._running: list[Stream] = []
        self._responses: list[asyncio.Task[None]] = []
        for number in range(num_streams):
            request = Request(id=str(number), max_tokens=1_000_000, prompt="x")
            stream = self._streams.open(StreamRecord(request))
            stream.accepted((1, 2, 3))
            stream.started()
            self._running.append(stream)
            self._responses.append(asyncio.create_task(self._respond(stream, route)))

    async def _respond(self, stream: Stream, route: Route) -> None:
        form: Form = NativeForm()
        if route == "openai":
            form = ChatForm(id="chatcmpl-x", created=1, model="rill")
        connected = ConnectedReader(Reader(stream), receive)
        framer = form.framer([stream], with_ids=False)
        response = StreamResponse(connected, framer, self._liveness)
        scope: MutableMapping[str, Any] = {"type": "http", "headers": []}
        access = scope[KEY] = Access(scope, GranianWriter(send))
        await response(scope, receive, send)
        assert access.send_rest is not None
        await access.send_rest()

    async def steps(self, number: int) -> None:
        """So many steps of the engine: each gives each stream a token."""
        for step in range(number):
            for stream in self._running:
                stream.delta(" token", 1, (step,))
            await asyncio.sleep(0)

    async def end(self) -> None:
        """The engine is done with all of them."""
        for stream in self._running:
            stream.finish("stop", 1)
        await asyncio.gather(*self._responses)


async def measure(num_streams: int, num_tokens: int, route: Route) -> float:
    """Seconds per token."""
    load = Load(num_streams, route)
    await load.steps(1)
    num_steps = num_tokens // num_streams
    began = time.process_time()
    await load.steps(num_steps)
    took = time.process_time() - began
    await load.end()
    return took / (num_steps * num_streams)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--route", choices=("native", "openai"), default="native")
    arguments = parser.parse_args()
    for num_streams in (1, 64):
        best = min(
            uvloop.run(measure(num_streams, arguments.tokens, arguments.route))
            for _ in range(ROUNDS)
        )
        print(f"{num_streams:3} streams: {1e6 * best:.2f} µs per token")


if __name__ == "__main__":
    main()
