"""An engine that does nothing by itself, because the test acts for it, and helpers for streams."""

import asyncio
from collections.abc import Callable
from typing import Any

from penstock.engine.protocol import EngineState, LosableSink, ModelInfo, UpstreamState
from penstock.errors import EngineUnavailable
from penstock.events import Event
from penstock.request import Request
from penstock.stream.admission import Admission
from penstock.stream.reader import Reader
from penstock.stream.record import StreamRecord
from penstock.stream.registry import Limits, Streams
from penstock.stream.stream import Stream


class EngineInTest:
    """A base class for engines that run in the test's own process."""

    def __init__(self, slots: int = 0) -> None:
        self.info: ModelInfo | None = ModelInfo("scripted", "scripted", 1000, slots)
        self.num_restarts = 0
        self.num_stopping = 0
        self.stopping_of: dict[str, int] = {}
        """How many cancelled requests for a model it has not let go of yet."""
        self.is_congested = False
        self.is_loading = False
        self.upstreams: tuple[UpstreamState, ...] = ()
        self.on_room: Callable[[], None] = lambda: None
        self.on_info: Callable[[ModelInfo], None] = lambda info: None
        self._ready = asyncio.Event()
        self._ready.set()

    def num_stopping_of(self, model: str) -> int:
        return self.stopping_of.get(model, 0)

    @property
    def state(self) -> EngineState:
        if self.is_loading:
            return "loading"
        return "ready" if self._ready.is_set() else "down"

    async def start(self) -> ModelInfo:
        assert self.info is not None
        return self.info

    async def stop(self) -> None:
        self.go_down()

    async def until_ready(self) -> None:
        await self._ready.wait()

    def go_down(self) -> None:
        """Refuse requests from now on."""
        self._ready.clear()

    def come_back(self) -> None:
        """Accept requests again."""
        self._ready.set()


class ScriptedEngine(EngineInTest):
    """An engine that only does what a test tells it to do.

    `submitted` holds its requests in order, `sinks` the requests that run in it by id.
    """

    def __init__(self, slots: int = 0) -> None:
        super().__init__(slots)
        self.submitted: list[Request] = []
        self.sinks: dict[str, LosableSink] = {}
        self.cancelled: list[str] = []

    def submit(self, request: Request, sink: LosableSink) -> None:
        if not self._ready.is_set():
            raise EngineUnavailable("engine_down", "It is down.")
        self.submitted.append(request)
        self.sinks[request.id] = sink

    def cancel(self, request_id: str, model: str = "") -> None:
        self.cancelled.append(request_id)
        self.sinks.pop(request_id, None)

    def die(self) -> None:
        """Go down and lose every running request, as a killed process does."""
        self.go_down()
        sinks, self.sinks = self.sinks, {}
        for sink in sinks.values():
            sink.lost()


def opened(streams: Streams, request: Request, **fields: Any) -> Stream:
    """Open a stream for this request; `fields` are those of its `StreamRecord`."""
    return streams.open(StreamRecord(request, **fields))


def begin(streams: Streams, name: str) -> Stream:
    """Open a stream and give it a slot and one token."""
    stream = opened(streams, ask(name))
    stream.accepted((1,))
    stream.started()
    stream.delta(f"{name} ", 1, (7,))
    return stream


def is_recovering(streams: Streams) -> bool:
    return streams.is_recovering


def one_slot(limits: Limits | None = None, max_queue: int = 10) -> tuple[ScriptedEngine, Streams]:
    """Return an engine and its streams, of which one runs at a time."""
    engine = ScriptedEngine()
    return engine, Streams([engine], limits, admission=Admission(1, max_queue))


def ask(stream_id: str, max_tokens: int = 5) -> Request:
    return Request(id=stream_id, max_tokens=max_tokens, prompt="x")


def submitted(engine: ScriptedEngine) -> list[str]:
    """Return the ids of the requests that the engine was given, in order."""
    return [request.id for request in engine.submitted]


def end(engine: ScriptedEngine, name: str) -> None:
    """Finish a request as the engine does."""
    engine.sinks[name].finish("stop", 1)


def pass_trial(engine: ScriptedEngine, name: str) -> None:
    """Generate all tokens of a request's trial, as an engine does that survives it."""
    num_tokens = next(each.max_tokens for each in engine.submitted[::-1] if each.id == name)
    sink = engine.sinks.pop(name)
    sink.accepted((1,))
    sink.started()
    for _ in range(num_tokens):
        sink.delta("x", 1, (7,))
    sink.finish("length", num_tokens)


def speak(stream: Stream, text: str, num_tokens: int = 1) -> None:
    """Let a stream run from its beginning to its end with this text."""
    stream.accepted((1,))
    stream.delta(text, num_tokens, ())
    stream.finish("stop", num_tokens)


async def settle() -> None:
    """Let every task run until it has to wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def taken(reader: Reader) -> list[Event]:
    """Return the events that the reader takes as soon as there is news."""
    return [event for _, event in await taken_choices(reader)]


async def taken_choices(reader: Reader) -> list[tuple[int, Event]]:
    """Return the events that the reader takes, each with its stream's number.

    Waits until the reader has something to take, is woken, or is done.
    """
    if not (reader.is_woken or reader.is_done or reader.lag > 0):
        waiter = asyncio.get_running_loop().create_future()
        reader.listen(lambda: None if waiter.done() else waiter.set_result(None))
        await waiter
    return [(number, event) for number, events in reader.take() for event in events]
