"""Uses a server in many ways at once, and checks that nothing is left behind.

    python -m benchmarks.mixed --minutes 10

Clients stream, complete, disconnect at random times, cancel and send bad input, all at once, over
real sockets. The server runs in this process, so that its tasks can be counted. The embedded engine
runs in its own process. The exit code is 1 if a task, a descriptor, a stream or a slot is left, or
if an answer was wrong.
"""

import argparse
import asyncio
import collections
import gc
import json
import random
import time
from collections.abc import Callable
from typing import Any

import psutil
import uvloop

from penstock.server import Server, with_local_model
from penstock.settings import load_settings
from tests.support.raw import post, request

BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b'{"prompt": 1}',
    b'{"prompt": "x", "max_tokens": 0}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "\\ud800"}',
    b'{"nothing": "known"}',
    b"[" * 10_000,
]
NUM_SLOTS = 8
PROMPTS = ["Once upon a time", "The old lighthouse", "Artificial intelligence will", "Rain"]


class RandomClient:
    """A client that uses the server in random ways."""

    def __init__(self, port: int, seed: int, counts: collections.Counter[str]) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._counts = counts

    async def once(self) -> None:
        """Do one random action and count its outcome."""
        action: Callable[[], Any] = self._random.choice(
            [self.stream, self.complete, self.disconnect, self.cancel, self.bad_input]
        )
        self._counts[f"{action.__name__}: {await action()}"] += 1

    async def stream(self) -> str:
        """Read a stream to its end."""
        answer = await self._exchange(self._body(stream=True))
        events = [json.loads(line[6:]) for line in answer.split(b"\n") if line[:6] == b"data: "]
        *deltas, end = events
        indexes = [event["index"] for event in events]
        right = (
            indexes == list(range(len(events)))
            and not any(delta["finished"] for delta in deltas)
            and end["finished"]
            and end["finish_reason"] in ("stop", "length")
            and end["usage"]["completion_tokens"] >= len(deltas)
        )
        return "ok" if right else "WRONG"

    async def complete(self) -> str:
        """Request an answer in one piece."""
        answer = await self._exchange(self._body(stream=False))
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        right = isinstance(body["text"], str) and body["usage"]["completion_tokens"] > 0
        return "ok" if right else "WRONG"

    async def disconnect(self) -> str:
        """Disconnect after some bytes, or before the first."""
        reader, writer = await self._send(self._body(stream=self._random.random() < 0.7))
        for _ in range(self._random.randrange(4)):
            await reader.read(200)
        if self._random.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        return "ok"

    async def cancel(self) -> str:
        """Cancel a stream from another connection."""
        reader, writer = await self._send(self._body(stream=True))
        head = await reader.readuntil(b"\r\n\r\n")
        stream_id = head.partition(b"x-stream-id: ")[2].partition(b"\r\n")[0]
        deleter_reader, deleter = await asyncio.open_connection("127.0.0.1", self._port)
        deleter.write(request("DELETE", f"/streams/{stream_id.decode()}", "Connection: close"))
        answer = await deleter_reader.read()
        deleter.close()
        rest = await reader.read()
        writer.close()
        right = b" 200 " in answer and rest.count(b'"finished":true') == 1
        return "ok" if right else "WRONG"

    async def bad_input(self) -> str:
        """Send a bad body, which the server must refuse."""
        answer = await self._exchange(self._random.choice(BAD_BODIES))
        return "ok" if answer.startswith(b"HTTP/1.1 4") else "WRONG"

    def _body(self, *, stream: bool) -> bytes:
        return json.dumps(
            {
                "prompt": self._random.choice(PROMPTS),
                "max_tokens": self._random.randint(1, 120),
                "stream": stream,
                "stop": self._random.choice([[], ["."], [" the", "!"]]),
            }
        ).encode()

    async def _send(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(post(body, "Connection: close"))
        return reader, writer

    async def _exchange(self, body: bytes) -> bytes:
        reader, writer = await self._send(body)
        try:
            return await reader.read()
        finally:
            writer.close()


class HeldResources:
    """The resources that this process and the engine's process hold at one moment."""

    def __init__(self, engine: psutil.Process) -> None:
        gc.collect()
        here = psutil.Process()
        self.tasks = len(asyncio.all_tasks())
        self.descriptors = here.num_fds()
        self.engine_descriptors = engine.num_fds()
        self.rss_mib = round(here.memory_info().rss / 2**20, 1)
        self.engine_rss_mib = round(engine.memory_info().rss / 2**20, 1)


async def settled(server: Server, engine: psutil.Process, before: HeldResources) -> HeldResources:
    """Wait until the held resources are down to `before`, for at most five seconds."""
    deadline = time.monotonic() + 5
    while True:
        now = HeldResources(engine)
        is_down = now.tasks <= before.tasks and now.descriptors <= before.descriptors
        if (is_down and server.num_streams == 0) or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.05)


async def queue_times(port: int, num: int) -> list[float]:
    """Return how many seconds each of `num` requests at once waited for a slot."""
    client = RandomClient(port, 0, collections.Counter())
    body = json.dumps({"prompt": "x", "max_tokens": 5, "stream": False}).encode()
    answers = await asyncio.gather(*(client._exchange(body) for _ in range(num)))
    return [
        json.loads(answer.partition(b"\r\n\r\n")[2])["timings"]["queue_time"] for answer in answers
    ]


async def run(minutes: float, num_clients: int) -> int:
    ready = asyncio.Event()
    settings = with_local_model(load_settings(port=0, slots=NUM_SLOTS, pace=0))
    server = Server(settings, on_ready=lambda *_: ready.set())
    serving = asyncio.create_task(server.run())
    await ready.wait()
    port = int(server.url.rpartition(":")[2])
    (engine,) = psutil.Process().children()
    counts: collections.Counter[str] = collections.Counter()
    deadline = time.monotonic() + minutes * 60

    async def use(seed: int, until: float) -> None:
        client = RandomClient(port, seed, counts)
        while time.monotonic() < until:
            await client.once()

    # First make everything that is made on first use.
    await asyncio.gather(*(use(-n, time.monotonic() + 3) for n in range(1, num_clients + 1)))
    await asyncio.sleep(1)
    before = HeldResources(engine)
    await asyncio.gather(*(use(n, deadline) for n in range(num_clients)))
    after = await settled(server, engine, before)
    waited = max(await queue_times(port, NUM_SLOTS))
    num_streams = server.num_streams
    server.stop()
    await serving

    print(json.dumps(dict(sorted(counts.items())), indent=1))
    print("before", vars(before))
    print("after ", vars(after))
    print(
        f"{num_streams} streams are left; the longest wait for one of {NUM_SLOTS} slots was"
        f" {waited:.3f} s"
    )
    faults = [
        *(name for name in counts if "WRONG" in name),
        *(["tasks"] if after.tasks > before.tasks else []),
        *(["descriptors"] if after.descriptors > before.descriptors else []),
        *(["engine's descriptors"] if after.engine_descriptors > before.engine_descriptors else []),
        *(["streams"] if num_streams else []),
        *(["slots"] if waited > 1 else []),
    ]
    print("left behind or wrong: " + (", ".join(faults) or "nothing"))
    return 1 if faults else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixed",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long to use the server")
    parser.add_argument("--clients", type=int, default=24, help="clients at once")
    arguments = parser.parse_args()
    raise SystemExit(uvloop.run(run(arguments.minutes, arguments.clients)))


if __name__ == "__main__":
    main()
