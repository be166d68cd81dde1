"""The response as an ASGI application, called with our own `receive` and `send`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Scope

from penstock.api.event_ids import id_line
from penstock.api.native.frames import NativeFrames
from penstock.stream.reader import Reader
from penstock.stream.registry import Streams
from penstock.stream.stream import Stream
from penstock.web.access import KEY, Access, access_of
from penstock.web.delivery import HEARTBEAT, MAX_WRITE_BYTES, ConnectedReader, StreamResponse
from penstock.web.granian import GranianPeer
from penstock.web.liveness import Liveness
from tests.support.scripted import ScriptedEngine, ask, opened, settle


class Socket:
    """The server's end of a connection: it keeps what was sent; the test lets the client read.

    With `at_once`, a send that does not wait returns no coroutine, as in Granian.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.sent: list[bytes] = []
        self.is_over = False
        self.takes = asyncio.Event()
        self.takes.set()
        self.gone = asyncio.Event()
        self._at_once = at_once

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def send(self, message: Message) -> Any:
        if self._at_once and self.takes.is_set():
            self._take(message)
            return Done()
        return self._send(message)

    async def _send(self, message: Message) -> None:
        await self.takes.wait()
        self._take(message)

    def _take(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.sent.append(message["body"])
            self.is_over = not message["more_body"]


class Done:
    def __await__(self) -> Any:
        return iter(())


@asynccontextmanager
async def responding(
    stream: Stream, socket: Socket, liveness: Liveness | None = None, *, resumed: bool = False
) -> AsyncIterator["asyncio.Task[None]"]:
    reader = Reader(stream)
    scope: Scope = {"type": "http", "headers": []}
    frames = NativeFrames(id_line=id_line(stream.id) if stream.resumable else b"")
    liveness = Liveness(15, 30) if liveness is None else liveness

    async def respond() -> None:
        peer = GranianPeer(socket.receive, socket.send)  # aborting cancels this task
        scope[KEY] = Access(scope, peer)
        connected = ConnectedReader(reader, peer)
        response = StreamResponse(connected, frames, liveness, resumed=resumed)
        await response(scope, socket.receive, socket.send)
        rest = access_of(scope).rest
        assert rest is not None
        ended = asyncio.get_running_loop().create_future()
        rest.begin(ended.set_result)
        await ended

    task = asyncio.ensure_future(respond())
    await settle()
    try:
        yield task
    finally:
        socket.takes.set()
        socket.gone.set()
        async with asyncio.timeout(20):
            await asyncio.wait({task})


def a_stream(*, resumable: bool = False) -> tuple[Streams, Stream]:
    streams = Streams([ScriptedEngine()])
    stream = opened(streams, ask("a"), resumable=resumable)
    stream.accepted((1,))
    stream.started()
    return streams, stream


def texts(pieces: list[bytes]) -> list[int]:
    """Return how many events each send had, without the sends that had none."""
    return [piece.count(b"data: ") for piece in pieces if piece]


@pytest.fixture(params=[True, False], ids=["at once", "later"])
def socket(request: pytest.FixtureRequest) -> Socket:
    return Socket(at_once=request.param)


async def test_events_of_one_turn_of_the_loop_go_out_in_one_send(socket: Socket) -> None:
    _, stream = a_stream()
    async with responding(stream, socket) as task:
        stream.delta("a", 1, ())
        stream.delta("b", 1, ())
        await settle()
        stream.delta("c", 1, ())
        await settle()
        stream.finish("stop", 3)
        async with asyncio.timeout(20):
            await task
        assert texts(socket.sent) == [2, 1, 1]
        assert socket.is_over


async def test_a_client_that_reads_nothing_gets_the_rest_in_one_send(socket: Socket) -> None:
    _, stream = a_stream()
    async with responding(stream, socket) as task:
        socket.takes.clear()
        for _ in range(5):
            stream.delta("a", 1, ())
            await settle()
        assert texts(socket.sent) == []
        socket.takes.set()
        await settle()
        assert texts(socket.sent) == [1, 4]
        stream.finish("stop", 5)
        async with asyncio.timeout(20):
            await task
        assert texts(socket.sent) == [1, 4, 1]


async def test_much_is_sent_in_pieces_and_all_of_it(socket: Socket) -> None:
    _, stream = a_stream()
    async with responding(stream, socket) as task:
        stream.delta("x" * 3 * MAX_WRITE_BYTES, 1, ())
        stream.delta("end", 1, ())
        await settle()
        stream.finish("stop", 2)
        async with asyncio.timeout(20):
            await task
    assert max(map(len, socket.sent)) == MAX_WRITE_BYTES
    body = b"".join(socket.sent)
    assert body.count(b"data: ") == 3
    assert b"x" * 3 * MAX_WRITE_BYTES in body


async def test_a_send_that_fails_ends_the_response(socket: Socket) -> None:
    _, stream = a_stream()

    def broken(message: Message) -> Any:
        raise ConnectionError("broken")

    async with responding(stream, socket) as task:
        socket._take = broken  # type: ignore[method-assign]
        stream.delta("a", 1, ())
        await ended(task)
    assert stream.ended is not None


async def ended(task: "asyncio.Task[None]") -> None:
    """Wait for a response that is cut off: its task is cancelled, which tells Granian."""
    assert (await asyncio.wait([task], timeout=20))[0]


async def test_a_sign_of_life_is_sent_when_it_is_asked_for(socket: Socket) -> None:
    _, stream = a_stream()
    liveness = Liveness(heartbeat=0.0, stall_timeout=30)
    async with responding(stream, socket, liveness):
        before = list(socket.sent)
        liveness.check(float("inf"))
        await settle()
        assert socket.sent == [*before, HEARTBEAT]


async def test_a_client_that_takes_nothing_is_ended_as_stalled(socket: Socket) -> None:
    _, stream = a_stream()
    liveness = Liveness(heartbeat=15, stall_timeout=30)
    async with responding(stream, socket, liveness) as task:
        socket.takes.clear()
        stream.delta("a", 1, ())
        await settle()
        assert liveness.lags() == [0]
        assert liveness.num_blocked() == 0
        liveness.check(float("inf"))
        await ended(task)
        assert liveness.num_stalled == 1
        assert len(liveness) == 0
        assert stream.client_gone


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_stream_whose_client_goes_before_it_knows_the_id_does_not_linger(
    *, resumed: bool
) -> None:
    streams, stream = a_stream(resumable=True)
    socket = Socket(at_once=True)
    socket.gone.set()
    async with responding(stream, socket, resumed=resumed) as task:
        async with asyncio.timeout(20):
            await task
        # The client of a later reader knows the id and may come back.
        if resumed:
            assert stream.ended is None
        else:
            assert streams.cancel("a") == "cancelled"
