import asyncio

import pytest

from penstock.engine.protocol import Sink
from penstock.errors import NotFound, Unavailable
from penstock.request import Request
from penstock.stream.streams import Streams, new_stream_id


class ScriptedEngine:
    """Takes requests and does nothing: the test is the engine."""

    def __init__(self) -> None:
        self.sinks: dict[str, Sink] = {}
        self.cancelled: list[str] = []
        self.down = False

    def submit(self, request: Request, sink: Sink) -> None:
        if self.down:
            raise Unavailable("engine_down", "It is down.")
        self.sinks[request.id] = sink

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


def ask(stream_id: str) -> Request:
    return Request(id=stream_id, max_tokens=5, prompt="x")


async def test_cancel_tells_the_engine_once_and_answers_the_same_each_time() -> None:
    engine = ScriptedEngine()
    streams = Streams(engine)
    streams.open(ask("a"))
    assert [streams.cancel("a") for _ in range(3)] == ["cancelled"] * 3
    assert engine.cancelled == ["a"]
    assert len(streams) == 0


async def test_cancel_after_the_end_tells_how_it_ended() -> None:
    engine = ScriptedEngine()
    streams = Streams(engine)
    streams.open(ask("a"))
    engine.sinks["a"].finish("length", 5)
    streams.open(ask("b"))
    engine.sinks["b"].fail("engine_error", "It gave up.")
    assert streams.cancel("a") == "length"
    assert streams.cancel("b") == "error"
    assert engine.cancelled == []


async def test_an_unknown_stream_is_not_found() -> None:
    with pytest.raises(NotFound):
        Streams(ScriptedEngine()).cancel("never")


async def test_a_request_without_an_engine_leaves_nothing_behind() -> None:
    engine = ScriptedEngine()
    engine.down = True
    streams = Streams(engine)
    with pytest.raises(Unavailable):
        streams.open(ask("a"))
    assert len(streams) == 0
    async with asyncio.timeout(1):
        await streams.drain(0.5)


async def test_draining_refuses_new_streams_and_waits_for_open_ones() -> None:
    engine = ScriptedEngine()
    streams = Streams(engine)
    stream = streams.open(ask("a"))
    drain = asyncio.create_task(streams.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as refused:
        streams.open(ask("b"))
    assert refused.value.code == "draining"
    assert "Retry-After" in refused.value.headers
    assert not drain.done()
    engine.sinks["a"].finish("stop", 1)
    async with asyncio.timeout(1):
        await drain
    assert stream.ended is not None


async def test_what_drains_too_long_is_cancelled() -> None:
    engine = ScriptedEngine()
    streams = Streams(engine)
    stream = streams.open(ask("a"))
    await streams.drain(0)
    assert stream.ended is not None
    assert streams.cancel("a") == "cancelled"


def test_stream_ids_cannot_be_guessed_or_break_a_url() -> None:
    ids = {new_stream_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(each) == 22 for each in ids)
    assert set("".join(ids)) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )
