"""After the engine's process died: its streams go on, as soon as there is an engine again.

In: streams that were lost, and the engine's return. Out: each of them submitted again as the
continuation of what it was, or given up. Not known here: how an engine is restarted.

The request that killed the engine may be among them. So one that the engine was at work on, and
that came to no new token, is under suspicion: it is tried before the others and alone, and if the
engine dies again while nothing has come of it, it is given up. Those that wait in line, and those
that came to new tokens, have done nothing wrong.

An answer under a schema or with tools cannot be taken up in its middle, for no engine's grammar
can: it is given up at once, and may simply be asked for again.
"""

import asyncio
import collections
from collections.abc import Callable
from typing import Protocol

from penstock.errors import EngineUnavailable
from penstock.request import Request
from penstock.stream.stream import Stream

NOT_BACK = "The engine stopped and did not come back in time. Send the request again later."


class RestartedEngine(Protocol):
    """The part of an engine that recovery needs."""

    def submit(self, request: Request, sink: Stream) -> None:
        """See `engine.process.supervisor.SupervisedEngine.submit`."""

    async def until_ready(self) -> None:
        """Wait until requests can be submitted."""


class Recovery:
    """The streams that have lost their engine. `timeout`: seconds until they are given up.

    `on_give_up` is called when they were, and `on_end` when it is no longer under way.
    """

    def __init__(
        self,
        engine: RestartedEngine,
        timeout: float,
        on_give_up: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._timeout = timeout
        self._on_give_up = on_give_up
        self._on_end = on_end
        self._suspects: collections.deque[Stream] = collections.deque()
        self._waiting: collections.deque[Stream] = collections.deque()
        self._on_trial: Stream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        """Streams wait to go on; nothing new should begin before them."""
        return self._task is not None

    def take(self, stream: Stream) -> None:
        """Have this stream, which the engine has just lost, go on."""
        if stream is self._on_trial and stream.phase != "progressed":
            stream.give_up(
                "engine_died",
                "The engine stopped twice over this request, and is being restarted. The request"
                " itself may be the cause.",
                retry_safe=False,
            )
        elif not stream.can_go_on:
            stream.give_up(
                "engine_died",
                "The engine stopped, and an answer under a schema or with tools cannot go on from"
                " its middle. Send the request again.",
            )
        elif stream.phase in ("submitted", "running"):
            self._suspects.append(stream)
        else:
            self._waiting.append(stream)
        # From the beginning, and not before all streams that were lost together are here.
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._recover())

    def stop(self) -> None:
        """Forget everything."""
        self._suspects.clear()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _recover(self) -> None:
        self._on_trial = None
        while self._suspects or self._waiting:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._engine.until_ready()
            except TimeoutError:
                self._give_up()
                break
            queue = self._suspects or self._waiting
            try:
                self._go_on(queue[0])
            except EngineUnavailable:  # it died again before this task had its turn
                continue
            stream = queue.popleft()
            if queue is self._suspects:
                self._on_trial = stream
                await stream.progressed()
                self._on_trial = None
        self._task = None
        self._on_end()

    def _go_on(self, stream: Stream) -> None:
        if stream.ended is not None:  # cancelled meanwhile
            return
        request = stream.continuation()
        if request.max_tokens <= 0:  # the engine died between the last token and the end
            stream.finish("length", 0)
        else:
            self._engine.submit(request, stream)

    def _give_up(self) -> None:
        for stream in (*self._suspects, *self._waiting):
            stream.give_up(
                "engine_died",
                NOT_BACK,
            )
        self._suspects.clear()
        self._waiting.clear()
        self._on_give_up()
