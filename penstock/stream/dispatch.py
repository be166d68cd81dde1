"""Sends requests to engines, and keeps one recovery for each engine.

A new request goes to a ready engine with a free slot. When an engine dies, its streams continue on
that engine before it takes new requests; the other engines go on.
"""

from collections.abc import Callable, Sequence

from penstock.engine.protocol import EngineHandle, LosableSink
from penstock.errors import EngineUnavailable, Problem
from penstock.request import Request
from penstock.stream.recovery import Recovery
from penstock.stream.stream import Stream


class _Lane:
    """One engine, its recovery, and the streams that it has."""

    def __init__(self, engine: EngineHandle, recovery: Recovery) -> None:
        self.engine = engine
        self.recovery = recovery
        self.stream_ids: set[str] = set()

    @property
    def is_ready(self) -> bool:
        """Return True if the engine takes new requests."""
        return self.engine.state == "ready" and not self.recovery.is_under_way

    @property
    def has_free_slot(self) -> bool:
        """Return True if the engine itself could run one more request."""
        engine = self.engine
        if engine.is_congested:
            return False
        num_slots = 0 if engine.info is None else engine.info.slots
        return not num_slots or len(self.stream_ids) + engine.num_stopping < num_slots


class Dispatcher:
    """Hands streams to `engines`.

    `restart_timeout` is how long streams wait for a dead engine, in seconds. `on_recovered` is
    called when an engine takes new requests again, also when it has let go of a cancelled request;
    `on_given_up` when an engine did not come back
    and no other engine takes requests.
    """

    def __init__(
        self,
        engines: Sequence[EngineHandle],
        restart_timeout: float,
        on_given_up: Callable[[], None],
        on_recovered: Callable[[], None],
    ) -> None:
        def give_up() -> None:
            if not any(lane.is_ready for lane in self._lanes):
                on_given_up()

        self._lanes = [
            _Lane(engine, Recovery(engine, restart_timeout, give_up, on_recovered))
            for engine in engines
        ]
        for engine in engines:
            engine.on_room = on_recovered
        self._lane_of: dict[str, _Lane] = {}

    @property
    def is_recovering(self) -> bool:
        """Return True if no engine takes new requests, and one has streams to continue first."""
        is_under_way = False
        for lane in self._lanes:  # plain loops here and below: they run for every request
            if lane.is_ready:
                return False
            is_under_way = is_under_way or lane.recovery.is_under_way
        return is_under_way

    @property
    def has_free_slot(self) -> bool:
        """Return True if an engine can start a request now.

        It is also True if no engine is ready, so that `submit` reports why.
        """
        is_any_ready = False
        for lane in self._lanes:
            if lane.is_ready:
                if lane.has_free_slot:
                    return True
                is_any_ready = True
        return not is_any_ready

    @property
    def num_stopping(self) -> int:
        """Return how many cancelled requests the engines have not let go of yet."""
        num_stopping = 0
        for lane in self._lanes:
            num_stopping += lane.engine.num_stopping
        return num_stopping

    def num_stopping_of(self, model: str) -> int:
        """Return how many cancelled requests for a model (`ModelInfo.id`) the engines still run."""
        return sum(lane.engine.num_stopping_of(model) for lane in self._lanes)

    def context_length(self, model: str) -> int | None:
        """Return the smallest context that the engines have for a model (see `Request.model`).

        In tokens; None until an engine was ready.
        """
        infos = [lane.engine.info for lane in self._lanes]
        lengths = (info.of(model).context_length for info in infos if info is not None)
        return min(lengths, default=None)

    def refusal(self) -> Problem | None:
        """Return the problem for which no new request can be taken now, if there is one."""
        if not self.is_recovering:
            return None
        return Problem(
            "engine_down",
            "The engine stopped and is restarting. Its running streams continue first. Try again"
            " in a moment.",
            headers={"Retry-After": "1"},
        )

    def submit(self, request: Request, stream: Stream) -> None:
        """Start `request` on an engine. Raises EngineUnavailable."""
        lane = self._pick()
        self._enter(lane, stream)
        try:
            lane.engine.submit(request, stream.sink())
        except EngineUnavailable:
            self._leave(stream)
            raise

    def submit_or_wait(self, request: Request, stream: Stream) -> None:
        """Start `request`; if the engine has just died, let it wait with that engine's streams."""
        lane = self._pick()
        self._enter(lane, stream)
        try:
            lane.engine.submit(request, stream.sink())
        except EngineUnavailable:
            lane.recovery.add(stream)

    def submit_aside(self, request: Request, sink: LosableSink) -> None:
        """Hand a request that takes no slot to an engine. Raises EngineUnavailable."""
        self._pick().engine.submit(request, sink)

    def watch_engines(self) -> None:
        """Notice the return of engines that are down without having lost a stream."""
        for lane in self._lanes:
            if lane.engine.state == "down":
                lane.recovery.begin()

    def stream_lost(self, stream: Stream) -> None:
        """Continue a stream whose engine died."""
        self._lane_of[stream.id].recovery.lost(stream)

    def stream_ended(self, stream: Stream, *, engine_done: bool) -> None:
        """Cancel the stream's request unless the engine ended it.

        A cancelled request keeps its slot until the engine works on it no more (`num_stopping`).
        """
        lane = self._leave(stream)
        if lane is not None and not engine_done:
            lane.engine.cancel(stream.id, stream.record.request.model)

    def let_go(self, stream: Stream) -> None:
        """Stop the work for a stream that goes on elsewhere."""
        lane = self._leave(stream)
        if lane is not None:
            lane.recovery.forget(stream)
            lane.engine.cancel(stream.id, stream.record.request.model)

    def stop(self) -> None:
        """Stop every recovery."""
        for lane in self._lanes:
            lane.recovery.stop()

    def _enter(self, lane: _Lane, stream: Stream) -> None:
        self._lane_of[stream.id] = lane
        lane.stream_ids.add(stream.id)

    def _leave(self, stream: Stream) -> _Lane | None:
        lane = self._lane_of.pop(stream.id, None)
        if lane is not None:
            lane.stream_ids.discard(stream.id)
        return lane

    def _pick(self) -> _Lane:
        """Return the ready engine with a free slot and the fewest streams."""

        def rank(lane: _Lane) -> tuple[bool, bool, int]:
            return (not lane.is_ready, not lane.has_free_slot, len(lane.stream_ids))

        return min(self._lanes, key=rank)
