"""Parses large bodies in one thread, one owner after another.

In: a function that parses. Out: its result. A small body is parsed at once, in the event loop. A
large one would stop every stream meanwhile, so it is parsed in a thread, which gives way to the
event loop every few milliseconds. There is one thread, so that only one body at a time takes many
times its bytes; each owner has one body in its queue at a time, so that no owner waits for all
bodies of another.
"""

import asyncio
import concurrent.futures
import weakref
from collections.abc import Callable
from typing import TypeVar

MAX_BYTES_AT_ONCE = 32 * 1024
"""The largest body that is parsed in the event loop, in bytes: it takes less than a millisecond."""

Parsed = TypeVar("Parsed")


class ParsingThread:
    """The thread, and the owners' turns."""

    def __init__(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "penstock-parsing")
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def run(self, owner: str, parse: Callable[[], Parsed]) -> Parsed:
        """Return what `parse` returns, in the owner's turn. Raises what it raises."""
        turn = self._turns.get(owner)
        if turn is None:
            turn = self._turns[owner] = asyncio.Lock()
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._executor, parse)
