"""The response as an ASGI application, called with our own `receive` and `send`."""

import asyncio

from starlette.types import Message, Scope

from penstock.api.exchange import KEY, Exchange
from penstock.api.frames import NativeFrames
from penstock.api.pulse import Pulse
from penstock.api.response import StreamResponse, watch_client
from penstock.stream.reader import Reader
from penstock.stream.streams import Streams
from tests.stream.scripted import ScriptedEngine, ask, settle


async def respond(*, resumed: bool) -> str | None:
    """How a resumable stream has ended, if it has, whose client goes before the head."""
    streams = Streams(ScriptedEngine())
    stream = streams.open(ask("a"), resumable=True)
    stream.accepted((1,))
    reader = Reader(stream)
    scope: Scope = {"type": "http", "headers": []}
    scope[KEY] = Exchange(scope)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        assert message["type"].startswith("http.response.")

    watch = watch_client(reader, receive)
    await settle()
    response = StreamResponse(
        reader, NativeFrames(with_ids=True), watch, Pulse(15, 30), resumed=resumed
    )
    async with asyncio.timeout(5):
        await response(scope, receive, send)
    return None if stream.ended is None else streams.cancel("a")


async def test_a_stream_whose_client_goes_before_it_knows_the_id_does_not_linger() -> None:
    assert await respond(resumed=False) == "cancelled"


async def test_a_stream_whose_later_reader_goes_before_the_head_lingers() -> None:
    assert await respond(resumed=True) is None
