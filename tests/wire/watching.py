"""What a server says about its engine and its requests."""

import asyncio
import time

from tests.support.waiting import soon
from tests.wire.case import get
from tests.wire.ends import End


async def engine_is_busy(end: End) -> None:
    """Ask for the metrics until they show a running stream."""
    async with end.connect() as wire, asyncio.timeout(30):
        body = b""
        while b"\npenstock_streams_running 1.0\n" not in body:
            body = (await wire.send(get(target=b"/metrics")).answer()).body


async def seconds_until_cancelled(end: End, request_id: str) -> float:
    """Wait until the log says that a request was cancelled."""

    def is_told() -> bool:
        lines = [line for line in list(end.server.output) if f"request_id={request_id} " in line]
        return any("finish_reason=cancelled" in line for line in lines)

    began = time.monotonic()
    assert await asyncio.to_thread(soon, is_told)
    return time.monotonic() - began
