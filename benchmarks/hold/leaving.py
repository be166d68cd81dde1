"""Clients that open a stream, read some of it and leave."""

import asyncio
from collections.abc import Callable

from tests.faults.history import History, numbered
from tests.faults.reading import Reader, fresh_word
from tests.support.servers import RunningServer


async def open_and_leave(
    server: RunningServer,
    history: History,
    number: int,
    *,
    at_once: int,
    last_event: Callable[[], int],
) -> None:
    """Open `number` streams that cannot be resumed, and leave each one early.

    A client leaves after the event `last_event()`, in turn by FIN and by RST. `at_once` clients run
    at a time.
    """
    left = iter(range(number))

    async def client() -> None:
        for each in left:
            reader = Reader(server.address, history)
            truth = numbered(fresh_word(), length=100_000, max_tokens=1000)
            await reader.open(truth, resumable=False, max_tokens=1000)
            await reader.got(last_event())
            reader.leave("RST" if each % 2 else "FIN")

    await asyncio.gather(*(client() for _ in range(at_once)))
