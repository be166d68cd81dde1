"""How late the event loop is: what everything in the server waits, beside its own work."""

import asyncio
import time

from penstock.observe.meter import Tally

EVERY_S = 0.1


async def measure_loop_lag(tally: Tally) -> None:
    """Ask for a timer every 0.1 s and count how much later it comes: for ever."""
    while True:
        asked_at = time.monotonic()
        await asyncio.sleep(EVERY_S)
        tally.add(max(0.0, time.monotonic() - asked_at - EVERY_S))
