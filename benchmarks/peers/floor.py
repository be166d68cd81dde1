"""The lower bound: an asyncio protocol on uvloop that writes each token to a bare socket.

    python -m benchmarks.peers.floor STEP_SOCKET

It has no framework, routes, checks, errors or back pressure, so it is not a usable server. It
frames and writes the same events as Penstock's /generate.
"""

import asyncio
import json
import sys
from importlib.metadata import version
from typing import cast

import uvloop

from benchmarks.peers.steps import Steps, announce, listener

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
FRAME = b'data: {"token":" token","index":%d,"finished":false}\n\n'
LAST = b'data: {"token":"","index":%d,"finished":true,"finish_reason":"length"}\n\n'


class Bare(asyncio.Protocol):
    """A connection with one request, which must arrive in one piece."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._left = int(json.loads(data.partition(b"\r\n\r\n")[2])["max_tokens"])
        self._index = 0
        self._transport.write(HEAD)
        self._token()

    def _token(self) -> None:
        if self._transport.is_closing():
            return
        self._write(FRAME % self._index)
        self._index += 1
        self._left -= 1
        if self._left:
            self._steps.call_next(self._token)
        else:
            self._write(LAST % self._index)
            self._transport.write(b"0\r\n\r\n")

    def _write(self, frame: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(frame), frame))


async def main() -> None:
    """Serve until killed."""
    steps, bound = Steps(sys.argv[1]), listener()
    await asyncio.get_running_loop().create_server(lambda: Bare(steps), sock=bound)
    announce(bound.getsockname()[1], uvloop=version("uvloop"))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
