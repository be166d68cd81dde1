"""Event loop lag: how late the event loop runs its timers."""

import asyncio
import time

from penstock.observe.meter import Tally

INTERVAL_S = 0.1


async def measure_loop_lag(tally: Tally) -> None:
    """Set a timer of 0.1 s again and again, and count how late each timer fires, in seconds."""
    while True:
        set_at = time.monotonic()
        await asyncio.sleep(INTERVAL_S)
        tally.add(max(0.0, time.monotonic() - set_at - INTERVAL_S))
