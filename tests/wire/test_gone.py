"""A client that leaves in the middle of an answer is noticed at once, streamed or whole."""

import asyncio
import json
import time

import pytest

from tests.support.waiting import soon
from tests.support.wire import Wire
from tests.wire.case import get, length, post
from tests.wire.ends import End

NOTICED_WITHIN_S = 0.5  # milliseconds, if the machine is not busy


@pytest.fixture(scope="module")
def flags() -> dict[str, object]:
    """The engine has one slot, and never makes its first token."""
    return {"engine_arg": ["slots=1", "prefill=600"]}


def line_of(end: End, request_id: str) -> str:
    """Return the log's line about a request; empty before its end."""
    lines = [line for line in list(end.server.output) if f"request_id={request_id} " in line]
    return "".join(lines)


async def engine_is_busy(end: End) -> None:
    """Ask for the metrics until they show a running stream."""
    async with end.connect() as wire, asyncio.timeout(10):
        body = b""
        while b"\npenstock_streams_running 1.0\n" not in body:
            body = (await wire.send(get(target=b"/metrics")).answer()).body


def leave_by_fin(wire: Wire) -> None:
    wire.transport.close()


WAYS = {"FIN": leave_by_fin, "RST": Wire.reset}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_is_noticed_at_once(
    end: End, is_streamed: bool, way: str
) -> None:
    request_id = f"gone-{is_streamed}-{way}"
    body = json.dumps({"prompt": "a", "stream": is_streamed}).encode()
    sent = post(length(body), body=body).replace(b"first", request_id.encode())
    async with end.connect() as wire:
        wire.send(sent)
        await engine_is_busy(end)
        WAYS[way](wire)
        await wire.until_closed()
    left = time.monotonic()
    assert await asyncio.to_thread(soon, lambda: "cancelled" in line_of(end, request_id))
    assert time.monotonic() - left < NOTICED_WITHIN_S
