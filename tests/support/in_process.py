"""An engine in the test's own process."""

import asyncio

from penstock.engine.tasks import TaskEngine

PATIENCE_S = 60


async def stop(engine: TaskEngine) -> None:
    """Stop an engine whose answers have all ended, once their requests have left it.

    A client learns of the end before the connection to llama.cpp is closed. A request that is
    cancelled there leaves the connection open: in a process of its own that ends with it.
    """
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*engine._tasks.values())
    await engine.stop()
