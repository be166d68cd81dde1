"""An engine for streams that does nothing by itself: the test is the engine."""

import asyncio
from typing import Any

from penstock.errors import EngineUnavailable
from penstock.request import Request
from penstock.stream.reader import MergedReader, Reader, news
from penstock.stream.stream import Stream


class ScriptedEngine:
    """`submitted` are the requests, in order; `sinks` those that run in it."""

    def __init__(self) -> None:
        self.submitted: list[Request] = []
        self.sinks: dict[str, Stream] = {}
        self.cancelled: list[str] = []
        self._ready = asyncio.Event()
        self._ready.set()

    def submit(self, request: Request, sink: Stream) -> None:
        if not self._ready.is_set():
            raise EngineUnavailable("engine_down", "It is down.")
        self.submitted.append(request)
        self.sinks[request.id] = sink

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.sinks.pop(request_id, None)

    async def until_ready(self) -> None:
        await self._ready.wait()

    def go_down(self) -> None:
        """Nothing can be submitted."""
        self._ready.clear()

    def die(self) -> None:
        """Lose everything, as a killed process does."""
        self.go_down()
        sinks, self.sinks = self.sinks, {}
        for sink in sinks.values():
            sink.lost()

    def come_back(self) -> None:
        """Take requests again."""
        self._ready.set()


def ask(stream_id: str, max_tokens: int = 5) -> Request:
    return Request(id=stream_id, max_tokens=max_tokens, prompt="x")


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def taken(reader: Reader | MergedReader) -> list[Any]:
    """What the reader takes as soon as there is news."""
    await news(reader)
    return list(reader.take())
