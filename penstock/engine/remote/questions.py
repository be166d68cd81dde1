"""Asks upstreams what each of them can answer: the tokens of a prompt, the text of tokens.

In: a request, its model, and a question. Out: the first answer. If an upstream fails, another one
is asked. If an upstream is slow, a second one is asked as well: a server that has just started may
need seconds for its first prompt. Not known here: what the questions are.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from penstock.engine.protocol import Sink
from penstock.engine.remote.answering import MAX_DEATHS, NOT_BACK
from penstock.engine.remote.failures import GivenUpError, UpstreamError
from penstock.engine.remote.models import Model
from penstock.engine.remote.pool import Pool, Upstream
from penstock.engine.remote.routing import key_of
from penstock.request import Request

# After this time, a second upstream is asked as well. Even a long prompt takes less.
SLOW_S = 1.0

Result = TypeVar("Result")


class Questions:
    """Asks the upstreams of `pool`. If there is none, a question waits for `patience` seconds."""

    def __init__(self, pool: Pool, patience: float) -> None:
        self._pool = pool
        self._patience = patience

    async def ask(
        self,
        model: Model,
        request: Request,
        sink: Sink,
        question: Callable[[Upstream], Awaitable[Result]],
        able: Callable[[Upstream], bool] | None = None,
    ) -> Result:
        """Return the answer to a question that any upstream of the model can answer.

        With `able`, only those for which it returns True can.

        Raises RefusedError, and GivenUpError if one upstream after the other fails.
        """
        asked: list[Upstream] = []
        running: set[asyncio.Task[Result]] = set()
        is_slow = False
        try:
            while len(asked) < MAX_DEATHS or running:
                if not running or is_slow:
                    one = self._ask_one(model, request, sink, question, asked, able)
                    running.add(asyncio.create_task(one))
                done, running = await asyncio.wait(
                    running, timeout=SLOW_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if not isinstance(task.exception(), UpstreamError):
                        return task.result()
                is_slow = len(running) == 1 and not done and self._has_another(model, asked, able)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        raise GivenUpError("engine_died", NOT_BACK)

    def _has_another(
        self, model: Model, asked: list[Upstream], able: Callable[[Upstream], bool] | None
    ) -> bool:
        """Return True if there is an upstream that can be asked now, and was not asked before."""
        others = (each for each in self._pool.serving(model) if each not in asked)
        return any(each.health.takes_requests and (able is None or able(each)) for each in others)

    async def _ask_one(
        self,
        model: Model,
        request: Request,
        sink: Sink,
        question: Callable[[Upstream], Awaitable[Result]],
        asked: list[Upstream],
        able: Callable[[Upstream], bool] | None,
    ) -> Result:
        """Ask one upstream, not the last one of `asked` if there are others. Add it to `asked`."""
        try:
            async with asyncio.timeout(self._patience):
                upstream = await self._pool.take(
                    *(model, key_of(request), 0, asked[-1] if asked else None, able),
                    asker=sink,
                    has_begun=bool(request.generated),
                    on_wait=functools.partial(sink.interrupted, waits=True),
                )
        except TimeoutError:
            raise GivenUpError("engine_died", NOT_BACK) from None
        asked.append(upstream)
        try:
            result = await question(upstream)
            upstream.health.succeed(sink)
            return result
        except UpstreamError as error:
            upstream.fail(error)
            raise
        finally:
            self._pool.give_back(upstream, 0, sink)
