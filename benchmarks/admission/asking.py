"""A client that costs little: one request on a connection of its own, read to its end."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What came back. `seconds`: from the last byte sent to the last one read."""

    status: int
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    """The terminal event, of a stream."""


def post(key: str = "", **fields: object) -> bytes:
    """A request to generate, which closes its connection."""
    body = json.dumps({"prompt": "Once upon a time", **fields}).encode()
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(port: int, request: bytes) -> Answer:
    """Send it and read what comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        began = time.perf_counter()
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read()
        seconds = time.perf_counter() - began
    finally:
        writer.close()
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    answer = Answer(int(status.split()[1]), seconds, headers)
    if answer.status == 200:
        last = body[body.rindex(b"data: ") + 6 :].partition(b"\n")[0]
        answer.end = json.loads(last)
    return answer
