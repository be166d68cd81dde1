"""Measures the CPU time of a token in the server's Python code, from the engine's delta to `send`.

    python -m benchmarks.token_cost [--tokens 200000] [--route openai]

There are no sockets. Several streams run at once, each with a reader. In each turn of the event
loop each stream gets one delta, as in one step of an engine. `send` does nothing. The output is the
lowest CPU time of thirty rounds, in microseconds per token. To compare two commits, run them
alternately on one quiet machine.

`tests/test_token_cost.py` counts the calls of the same code, which noise cannot change.
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
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream
from penstock.web.access import KEY, Access
from penstock.web.delivery import ConnectedReader, StreamResponse
from penstock.web.granian import GranianPeer
from penstock.web.liveness import Liveness
from tests.support.scripted import ScriptedEngine

ROUNDS = 30
Route = Literal["native", "openai"]


class Sent:
    """The awaitable that a server's `send` returns if it does not wait."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


SENT = Sent()


def send(message: Message) -> Awaitable[None]:
    """Drop a message."""
    return SENT


async def receive() -> Message:
    """Wait forever for a message."""
    await asyncio.Event().wait()
    return {}


class StreamLoad:
    """A number of streams with their responses. Construct it in a running event loop."""

    def __init__(self, num_streams: int, route: Route) -> None:
        self._streams = Streams([ScriptedEngine()])
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
        peer = GranianPeer(receive, send)
        connected = ConnectedReader(Reader(stream), peer)
        framer = form.framer([stream], with_ids=False)
        response = StreamResponse(connected, framer, self._liveness)
        scope: MutableMapping[str, Any] = {"type": "http", "headers": []}
        access = scope[KEY] = Access(scope, peer)
        await response(scope, receive, send)
        assert access.rest is not None
        ended = asyncio.get_running_loop().create_future()
        access.rest.begin(ended.set_result)
        await ended

    async def steps(self, number: int) -> None:
        """Make `number` steps of the engine. Each step gives each stream a token."""
        for step in range(number):
            for stream in self._running:
                stream.delta(" token", 1, (step,))
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Finish every stream and wait for the responses."""
        for stream in self._running:
            stream.finish("stop", 1)
        await asyncio.gather(*self._responses)


async def measure(num_streams: int, num_tokens: int, route: Route) -> float:
    """Return the CPU seconds per token."""
    load = StreamLoad(num_streams, route)
    await load.steps(1)
    num_steps = num_tokens // num_streams
    began = time.process_time()
    await load.steps(num_steps)
    took = time.process_time() - began
    await load.end()
    return took / (num_steps * num_streams)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_cost",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens of a round")
    parser.add_argument(
        "--route", choices=("native", "openai"), default="native", help="the API that frames tokens"
    )
    arguments = parser.parse_args()
    for num_streams in (1, 64):
        best = min(
            uvloop.run(measure(num_streams, arguments.tokens, arguments.route))
            for _ in range(ROUNDS)
        )
        print(f"{num_streams:3} streams: {1e6 * best:.2f} µs per token")


if __name__ == "__main__":
    main()
