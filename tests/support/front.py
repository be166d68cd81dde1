"""A Penstock in front of upstreams that run in the test's own process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.servers import RunningServer, serve, serve_early


@contextlib.asynccontextmanager
async def front(*urls: str, **flags: object) -> AsyncIterator[RunningServer]:
    """Run a Penstock in front of these upstreams. The test's own loop goes on meanwhile."""
    async with _entered(serve(upstream=list(urls), **flags)) as server:
        yield server


@contextlib.asynccontextmanager
async def early_front(*urls: str, **flags: object) -> AsyncIterator[RunningServer]:
    """Run a Penstock that does not wait until one of these upstreams is there."""
    async with _entered(serve_early(upstream=list(urls), **flags)) as server:
        yield server


@contextlib.asynccontextmanager
async def _entered(
    running: contextlib.AbstractContextManager[RunningServer],
) -> AsyncIterator[RunningServer]:
    server = await asyncio.to_thread(running.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
