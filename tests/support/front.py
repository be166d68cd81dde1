"""A Penstock in front of upstreams that run in the test's own process."""

import contextlib
from collections.abc import AsyncIterator

from tests.support.in_a_thread import in_a_thread
from tests.support.servers import RunningServer, serve, serve_early


@contextlib.asynccontextmanager
async def front(*urls: str, **flags: object) -> AsyncIterator[RunningServer]:
    """Run a Penstock in front of these upstreams. The test's own loop goes on meanwhile."""
    async with in_a_thread(serve(upstream=list(urls), **flags)) as server:
        yield server


@contextlib.asynccontextmanager
async def early_front(*urls: str, **flags: object) -> AsyncIterator[RunningServer]:
    """Run a Penstock that does not wait until one of these upstreams is there."""
    async with in_a_thread(serve_early(upstream=list(urls), **flags)) as server:
        yield server
