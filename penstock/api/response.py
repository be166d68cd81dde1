"""A stream as an HTTP response: the last step of a token's way.

In: a reader and a framer. Out: one `send` for everything that is new, each time the log grows.
Meanwhile the client is watched: when it goes, the stream is cancelled at once.
"""

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.frames import NativeFrames
from penstock.stream.reader import Reader
from penstock.stream.stream import Stream

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would else hold the tokens back
]


class StreamResponse(Response):
    """Sends a stream's events until the terminal one, or until the client goes.

    `watch` is the task that watches the client (see `watch_client`); it ends with the response.
    """

    def __init__(self, reader: Reader, frames: NativeFrames, watch: asyncio.Task[None]) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = [*HEADERS, (b"x-stream-id", reader.stream.id.encode())]
        self._reader = reader
        self._frames = frames
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader, stream = self._reader, self._reader.stream
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # The head goes out now: the client may want to stop what has not yet begun.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            more = True
            while more:
                events = await reader.take()
                more = stream.ended is None or reader.lag > 0
                body = self._frames.frame(events)
                await send({"type": "http.response.body", "body": body, "more_body": more})
        finally:
            self._watch.cancel()
            stream.cancel()  # nothing to do where it has ended


def watch_client(stream: Stream, receive: Receive) -> asyncio.Task[None]:
    """A task that cancels the stream when the client disconnects. The body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.cancel()

    return asyncio.create_task(watch())
