"""Tasks that do the same again and again until they are stopped."""

import asyncio
from collections.abc import Awaitable, Callable

from penstock import supervision


class Loop:
    """Calls `once` every `interval` seconds, from now on."""

    def __init__(self, name: str, once: Callable[[], Awaitable[None]], interval: float) -> None:
        self._is_stopping = False
        self._task = supervision.keep(name, lambda: self._run(once, interval))

    async def _run(self, once: Callable[[], Awaitable[None]], interval: float) -> None:
        # A cancellation may get lost inside redis-py, so the flag counts as well.
        while not self._is_stopping:
            await once()
            await asyncio.sleep(interval)

    async def stop(self) -> None:
        """Return when the task has ended."""
        self._is_stopping = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
