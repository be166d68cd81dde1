"""A Penstock in front of upstreams that run in the test's own process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.servers import RunningServer, serve


@contextlib.asynccontextmanager
async def front(*urls: str, **flags: object) -> AsyncIterator[RunningServer]:
    """Run a Penstock in front of these upstreams. The test's own loop goes on meanwhile."""
    running = serve(upstream=list(urls), **flags)
    server = await asyncio.to_thread(running.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
