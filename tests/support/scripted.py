"""An engine that does nothing by itself: the test acts for it."""

import asyncio
from typing import Any

from penstock.errors import Unavailable
from penstock.request import Request
from penstock.stream.reader import MergedReader, Reader, news
from penstock.stream.stream import Stream


class ScriptedEngine:
    """An engine driven by the test. `submitted` has all requests, `sinks` the running ones."""

    def __init__(self) -> None:
        self.submitted: list[Request] = []
        self.sinks: dict[str, Stream] = {}
        self.cancelled: list[str] = []
        self._ready = asyncio.Event()
        self._ready.set()

    def submit(self, request: Request, sink: Stream) -> None:
        if not self._ready.is_set():
            raise Unavailable("engine_down", "It is down.")
        self.submitted.append(request)
        self.sinks[request.id] = sink

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.sinks.pop(request_id, None)

    async def until_ready(self) -> None:
        await self._ready.wait()

    def go_down(self) -> None:
        """Refuse requests from now on."""
        self._ready.clear()

    def die(self) -> None:
        """Go down and lose every running request, as a killed process does."""
        self.go_down()
        sinks, self.sinks = self.sinks, {}
        for sink in sinks.values():
            sink.lost()

    def come_back(self) -> None:
        """Accept requests again."""
        self._ready.set()


def ask(stream_id: str, max_tokens: int = 5) -> Request:
    return Request(id=stream_id, max_tokens=max_tokens, prompt="x")


async def settle() -> None:
    """Let every task run until it has to wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def taken(reader: Reader | MergedReader) -> list[Any]:
    """Wait until the reader has news, then take its events."""
    await news(reader)
    return list(reader.take())
