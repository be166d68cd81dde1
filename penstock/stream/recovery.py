"""Continues the streams of an engine whose process died, once the engine is back.

Each lost stream is submitted again as a continuation, or given up. How an engine restarts is not
known here.

The request that killed the engine may be among the lost ones. A stream is a *suspect* if the
engine was working on it and it got no token since it was last submitted. Suspects are tried first
and one at a time; if the engine dies again before a suspect gets a token, that stream is given up.
Queued streams and streams that got new tokens are no suspects.

Part of a JSON value or of a tool call cannot continue from its middle, because no engine's
grammar can. It is given up at once, and its client may send the request again.
"""

import asyncio
import collections
from collections.abc import Callable

from penstock.engine.protocol import EngineHandle
from penstock.errors import EngineUnavailable
from penstock.stream.stream import Stream

NOT_BACK = "The engine stopped and did not come back in time. Send the request again later."


class Recovery:
    """The streams that one engine has lost.

    They are given up after `timeout` seconds without an engine; then `on_give_up` is called.
    `on_end` is called when the recovery is over.
    """

    def __init__(
        self,
        engine: EngineHandle,
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
        """Return True while the engine is away or streams wait to continue on it.

        No new stream should start before them.
        """
        return self._task is not None

    def take(self, stream: Stream) -> None:
        """Continue a stream that the engine has just lost."""
        if stream is self._on_trial and stream.phase != "progressed":
            stream.give_up(
                "engine_died",
                "The engine stopped twice while working on this request and is restarting. The"
                " request itself may be the cause.",
                retry_safe=False,
            )
        elif not stream.can_continue:
            stream.give_up(
                "engine_died",
                "The engine stopped. An answer with a JSON schema or a tool call cannot continue"
                " from its middle. Send the request again.",
            )
        elif stream.phase in ("submitted", "running"):
            self._suspects.append(stream)
        else:
            self._waiting.append(stream)
        # Start over: every stream that was lost together must be here before the first continues.
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.begin()

    def begin(self) -> None:
        """Wait for the engine, and then continue its streams, if it has any."""
        if self._task is None:
            self._task = asyncio.create_task(self._recover())

    def stop(self) -> None:
        """Forget every stream."""
        self._suspects.clear()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _recover(self) -> None:
        self._on_trial = None
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._engine.until_ready()
            except TimeoutError:
                self._give_up()
                break
            queue = self._suspects or self._waiting
            if not queue:
                break
            try:
                self._continue(queue[0])
            except EngineUnavailable:  # it died again before this task ran
                continue
            stream = queue.popleft()
            if queue is self._suspects:
                self._on_trial = stream
                await stream.progressed()
                self._on_trial = None
        self._task = None
        self._on_end()

    def _continue(self, stream: Stream) -> None:
        if stream.ended is not None:  # cancelled meanwhile
            return
        request = stream.continuation()
        if request.max_tokens <= 0:  # the engine died between the last token and the end
            stream.finish("length", 0)
        else:
            self._engine.submit(request, stream)

    def _give_up(self) -> None:
        for stream in (*self._suspects, *self._waiting):
            stream.give_up("engine_died", NOT_BACK)
        self._suspects.clear()
        self._waiting.clear()
        self._on_give_up()
