"""Reports how many streams a server that was told to stop still waits for.

In: a function that counts them. Out: the number at first and when it changes, at most once a
second, so that a thousand short streams do not fill a terminal or a log.
"""

import asyncio
from collections.abc import Callable

LOOK_EVERY_S = 1.0


async def report_waiting(count: Callable[[], int], tell: Callable[[int], None]) -> None:
    """Call `tell` with each new number of streams, but never with 0, until cancelled."""
    told = 0
    while True:
        number = count()
        if number and number != told:
            tell(number)
        told = number
        await asyncio.sleep(LOOK_EVERY_S)
