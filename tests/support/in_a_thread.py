"""Contexts that take their time, such as programs that start, for tests with an event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

Some = TypeVar("Some")


@contextlib.asynccontextmanager
async def in_a_thread(context: contextlib.AbstractContextManager[Some]) -> AsyncIterator[Some]:
    """Enter and leave a context in a thread, while this event loop turns."""
    entered = await asyncio.to_thread(context.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
