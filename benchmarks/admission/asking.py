"""A client with little overhead: one request on its own connection, read to the end."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from tests.support import raw


@dataclass
class TimedResponse:
    """A response and its duration.

    `seconds`: from the request's last byte sent to the response's last byte read. `end`: the
    terminal event of a stream.
    """

    status: int
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)


def generate(key: str = "", *headers: str, **fields: object) -> bytes:
    """Return a request to generate, with an API key if `key` is not empty."""
    body = json.dumps({"prompt": "Once upon a time", **fields}).encode()
    authorization = [f"Authorization: Bearer {key}"] if key else []
    return raw.post(body, *authorization, *headers)


async def ask(port: int, key: str = "", **fields: object) -> TimedResponse:
    """Send a request to generate and read the whole response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(generate(key, "Connection: close", **fields))
        began = time.perf_counter()
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read()
        seconds = time.perf_counter() - began
    finally:
        writer.close()
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    response = TimedResponse(int(status.split()[1]), seconds, headers)
    if response.status == 200:
        last = body[body.rindex(b"data: ") + 6 :].partition(b"\n")[0]
        response.end = json.loads(last)
    return response
