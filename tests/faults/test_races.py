"""Cancel, finish, fail, expire, resume, read and kill the engine, in any order, on any number of
streams: the first event that ends a stream wins, and readers miss nothing.

The streams are real; the test provides the engine and the clock. The checker that judges whole
servers also judges these readers.
"""

import asyncio
import itertools
import selectors
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from penstock.engine.protocol import LosableSink
from penstock.errors import EngineUnavailable, Problem
from penstock.events import Delta, Failure, finish_reason_of
from penstock.request import Request
from penstock.stream.reader import Reader
from penstock.stream.registry import Limits, Streams
from penstock.stream.stream import Stream
from tests.faults.checker import judge
from tests.faults.history import (
    Abort,
    Attached,
    Detached,
    Ended,
    Got,
    History,
    Told,
    numbered,
)
from tests.support.scripted import EngineInTest, opened, taken

LINGER_S, RETAIN_S, RESTART_S = 5, 9, 30
MAX_TOKENS = 50


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time the test sets."""

    def __init__(self) -> None:
        super().__init__(selectors.DefaultSelector())
        self.now = 0.0

    def time(self) -> float:
        return self.now


@dataclass
class Running:
    """A request in the engine, continued from token `first` to `end`; `next` is its next token."""

    sink: LosableSink
    first: int
    next: int
    end: int


class NumberingEngine(EngineInTest):
    """An engine that emits a stream's next number when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[str, Running] = {}

    def submit(self, request: Request, sink: LosableSink) -> None:
        if self.state == "down":
            raise EngineUnavailable("engine_down", "It is down.")
        first = len(request.generated)
        self.running[request.id] = Running(sink, first, first, first + request.max_tokens)
        sink.accepted((1, 2, 3))
        sink.started()

    def cancel(self, request_id: str, model: str = "") -> None:
        self.running.pop(request_id, None)

    def say(self, stream_id: str) -> None:
        running = self.running[stream_id]
        index, running.next = running.next, running.next + 1
        running.sink.delta(f"{stream_id}:{index} ", 1, (index,))
        if running.next == running.end:
            self.finish(stream_id)

    def finish(self, stream_id: str) -> None:
        running = self.running.pop(stream_id)
        running.sink.finish("length", running.next - running.first)

    def die(self) -> None:
        self.go_down()
        running, self.running = self.running, {}
        for each in running.values():
            each.sink.lost()


@dataclass
class Model:
    """The expected state of a stream."""

    stream: Stream
    resumable: bool
    readers: int = 1
    num_tokens: int = 0
    deaths: int = 0
    deaths_without_token: int = 0
    unread_at: float = 0.0
    ended: str = ""
    ended_at: float = 0.0


@dataclass
class Connection:
    """A reader, and the task that keeps reading if the reader is quick."""

    name: str
    model: Model
    reader: Reader
    task: asyncio.Task[None] | None = None
    is_open: bool = True
    taken: int = 0
    is_told: bool = False


class Races(RuleBasedStateMachine):
    """A state machine of everything that can happen to streams."""

    models = Bundle("models")
    connections = Bundle("connections")

    @initialize()
    def begin(self) -> None:
        self.loop = Clock()
        asyncio.set_event_loop(self.loop)
        self.ticks = itertools.count()
        self.names = itertools.count()
        self.history = History()
        self.all: dict[str, Model] = {}
        self.open_connections: list[Connection] = []
        self.run(self._begin())

    async def _begin(self) -> None:
        self.engine = NumberingEngine()
        limits = Limits(linger=LINGER_S, retain=RETAIN_S, restart_timeout=RESTART_S)
        self.streams = Streams([self.engine], limits)

    def run(self, work: Any) -> Any:
        """Run `work`, then every task that it makes ready."""

        async def settled() -> Any:
            result = await work
            for _ in range(8):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(settled())

    def tick(self) -> float:
        return float(next(self.ticks))

    # Clients.

    @rule(target=models, resumable=st.booleans(), is_quick=st.booleans())
    def open(self, resumable: bool, is_quick: bool) -> Any:
        async def work() -> Model | None:
            name = f"s{next(self.names)}"
            request = Request(id=name, max_tokens=MAX_TOKENS, prompt=name)
            may_open = not (self.engine.state == "down" or self.streams.is_recovering)
            refused = ""
            try:
                stream = opened(self.streams, request, resumable=resumable)
            except Problem as problem:
                refused = problem.code
            assert refused == ("" if may_open else "engine_down")
            if refused:
                return None
            model = self.all[name] = Model(stream, resumable)
            truth = numbered(name, length=100, max_tokens=MAX_TOKENS)
            self.history.open(name, replace(truth, may_fail=True))
            self._connect(model, Reader(stream), is_quick)
            return model

        model = self.run(work())
        return multiple() if model is None else model

    @rule(
        target=connections,
        model=models,
        is_quick=st.booleans(),
        after=st.integers(-1, MAX_TOKENS),
    )
    def attach(self, model: Model, is_quick: bool, after: int) -> Any:
        async def work() -> Connection | None:
            why_not = ""
            try:
                found = self.streams.find(model.stream.id)
            except Problem as problem:
                why_not = problem.code
            assert why_not == self._why_not_to_be_read(model)
            if why_not:
                return None
            assert found is model.stream
            cursor = min(after + 1, len(found.log))
            if model.ended and cursor == len(found.log):
                return None  # the API answers 204
            model.readers += 1
            return self._connect(model, Reader(found, cursor=cursor), is_quick)

        connection = self.run(work())
        return multiple() if connection is None else connection

    @rule(connection=connections)
    def read(self, connection: Connection) -> None:
        async def work() -> None:
            if connection.is_open and connection.task is None:
                while connection.reader.lag > 0:
                    self._record(connection, await taken(connection.reader))

        self.run(work())

    @rule(connection=connections)
    def leave(self, connection: Connection) -> None:
        async def work() -> None:
            if connection.is_open:
                self._disconnect(connection)

        self.run(work())

    @rule(model=models)
    def first_client_leaves(self, model: Model) -> None:
        async def work() -> None:
            for connection in self.open_connections:
                if connection.model is model:
                    self._disconnect(connection)
                    break

        self.run(work())

    @rule(model=models, twice=st.booleans())
    def cancel(self, model: Model, twice: bool) -> None:
        async def work() -> None:
            self._end(model, "cancelled")
            for _ in range(1 + twice):
                reason = self.streams.cancel(model.stream.id)
                assert reason == model.ended
                self.history.add(model.stream.id, Told(self.tick(), reason))

        self.run(work())

    # The engine.

    @rule(model=models, number=st.integers(1, 5))
    def say(self, model: Model, number: int) -> None:
        async def work() -> None:
            for _ in range(number):
                if model.stream.id in self.engine.running:
                    assert not model.ended
                    if model.num_tokens < MAX_TOKENS - 1:
                        self.engine.say(model.stream.id)
                        model.num_tokens += 1
                        model.deaths_without_token = 0

        self.run(work())

    @rule(model=models, fails=st.booleans(), says_more=st.booleans())
    def finish(self, model: Model, fails: bool, says_more: bool) -> None:
        async def work() -> None:
            if model.stream.id not in self.engine.running:
                return
            sink = self.engine.running[model.stream.id].sink
            if fails:
                self._end(model, "error")
                del self.engine.running[model.stream.id]
                sink.fail("engine_error", "It gave up.")
            else:
                self._finish(model)
            if says_more:  # an engine may be late
                sink.delta("late ", 1, (99,))
                sink.finish("stop", 99)

        self.run(work())

    @precondition(lambda self: self.engine.state != "down")
    @rule(is_back_at_once=st.booleans())
    def die(self, is_back_at_once: bool) -> None:
        async def work() -> None:
            for stream_id in self.engine.running:
                self.all[stream_id].deaths += 1
                self.all[stream_id].deaths_without_token += 1
            self.engine.die()
            if is_back_at_once:
                self.engine.come_back()

        self.run(work())

    @precondition(lambda self: self.engine.state == "down")
    @rule(dies_again=st.booleans())
    def come_back(self, dies_again: bool) -> None:
        async def work() -> None:
            self.engine.come_back()
            if dies_again:  # before anything could use it
                self.engine.die()

        self.run(work())

    # The clock.

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        async def nothing() -> None:
            pass

        for _ in range(seconds):
            self.loop.now += 1.0
            for model in self.all.values():
                is_unread = not model.readers and not model.ended
                if is_unread and self.loop.now >= model.unread_at + LINGER_S:
                    self._end(model, "cancelled")
            self.run(nothing())
            self._give_up_what_waits_too_long()

    # Invariants.

    @invariant()
    def streams_are_as_they_should_be(self) -> None:
        for name, model in self.all.items():
            ended = model.stream.ended
            reason = "" if ended is None else finish_reason_of(ended)
            if isinstance(ended, Failure) and ended.code == "engine_died" and not model.ended:
                has_reason = model.deaths_without_token >= 2 or model.deaths >= 3
                assert has_reason, "given up without a reason"
                self._end(model, "error")
            assert reason == model.ended, f"{name}: ended by {reason!r} instead of {model.ended!r}"
            assert not (model.ended and name in self.engine.running), (
                "the engine still runs an ended stream"
            )
        assert len(self.streams) == sum(not model.ended for model in self.all.values())
        kept = [model for model in self.all.values() if self._is_kept(model)]
        assert len(self.streams.kept) == len(kept)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.run(self._wind_up())
            for name, model in self.all.items():
                self.history.add(name, Told(self.tick(), model.ended))
            verdict = judge(self.history)
            assert verdict.holds, verdict
        finally:
            self.run(self._clear_up())
            self.loop.close()
            asyncio.set_event_loop(None)

    async def _clear_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _wind_up(self) -> None:
        """Finish everything that still runs, to find anything that is stuck."""
        if self.engine.state == "down":
            self.engine.come_back()
        for _ in range(20 + 3 * len(self.all)):
            for _ in range(8):
                await asyncio.sleep(0)
            for name in list(self.engine.running):
                self._finish(self.all[name])
        for _ in range(8):
            await asyncio.sleep(0)
        self.streams_are_as_they_should_be()
        assert len(self.streams) == 0, "streams are stuck"
        assert not self.streams.is_recovering
        for connection in list(self.open_connections):
            if connection.task is not None:
                await connection.task
            else:
                while connection.reader.lag > 0:
                    self._record(connection, await taken(connection.reader))
            assert connection.is_told, "a reader has not got the terminal event"
            self._disconnect(connection)

    # The model.

    def _finish(self, model: Model) -> None:
        """Let the engine finish this stream, which decides the stream's truth."""
        name = model.stream.id
        self._end(model, "length")
        history = self.history.streams[name]
        history.truth = replace(
            numbered(name, length=MAX_TOKENS, max_tokens=model.num_tokens), may_fail=True
        )
        self.engine.finish(name)

    def _connect(self, model: Model, reader: Reader, is_quick: bool) -> Connection:
        connection = Connection(f"r{next(self.names)}", model, reader)
        stream_id = model.stream.id
        entry = Attached(self.tick(), connection.name, reader._cursors[0] - 1)
        self.history.add(stream_id, entry)
        connection.taken = reader._cursors[0]
        self.open_connections.append(connection)
        if is_quick:
            connection.task = self.loop.create_task(self._read_on(connection))
        return connection

    async def _read_on(self, connection: Connection) -> None:
        while not connection.reader.is_done:
            self._record(connection, await taken(connection.reader))

    def _record(self, connection: Connection, events: list[Any]) -> None:
        for event in events:
            at, now = connection.taken, self.tick()
            connection.taken += 1
            data = repr(event).encode()
            name = connection.name
            if isinstance(event, Delta):
                entry: Got | Ended = Got(now, name, at, at, event.text, data)
            else:
                code = event.code if isinstance(event, Failure) else ""
                num_tokens = event.usage.completion_tokens
                entry = Ended(now, name, at, at, finish_reason_of(event), code, num_tokens, data)
                connection.is_told = True
            self.history.add(connection.model.stream.id, entry)

    def _disconnect(self, connection: Connection) -> None:
        model = connection.model
        connection.is_open = False
        self.open_connections.remove(connection)
        model.readers -= 1
        if not model.readers and not model.ended:
            model.unread_at = self.loop.now
            if not model.resumable:
                self._end(model, "cancelled")
        connection.reader.close()
        self.history.add(model.stream.id, Detached(self.tick(), connection.name, "left"))

    def _end(self, model: Model, reason: str) -> None:
        if not model.ended:
            model.ended, model.ended_at = reason, self.loop.now
            if reason == "cancelled":
                self.history.add(model.stream.id, Abort(self.tick(), "delete"))

    def _is_kept(self, model: Model) -> bool:
        return bool(model.resumable and model.ended and self.loop.now < model.ended_at + RETAIN_S)

    def _why_not_to_be_read(self, model: Model) -> str:
        if not model.resumable:
            return "not_resumable"
        if model.ended and not self._is_kept(model):
            return "history_lost"
        return ""

    def _give_up_what_waits_too_long(self) -> None:
        """Expect the streams that waited too long for the engine to have failed."""
        if self.engine.state != "down":
            return
        for model in self.all.values():
            ended = model.stream.ended
            if isinstance(ended, Failure) and ended.code == "engine_died" and not model.ended:
                self._end(model, "error")


TestRaces = Races.TestCase
TestRaces.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
