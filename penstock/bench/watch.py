"""Whether the client itself kept up: how late its loop ran, and what it took of a core.

A load generator that has no time left measures itself. Whatever a stream's bytes waited for in this
process looks like the server's latency; so it is measured beside it, and said.
"""

import asyncio
import time

from penstock.bench.http import Clock

EVERY_S = 0.02
WINDOW_S = 1.0


class Watch:
    """Watches its own process while `run` runs. Times in seconds, shares in cores."""

    def __init__(self, clock: Clock) -> None:
        self.lags: list[float] = []
        self.peak_cpu = 0.0
        self._clock = clock
        self._began = self._window = clock()
        self._cpu_began = self._window_cpu = time.process_time()

    async def run(self) -> None:
        """Ask for a timer again and again, and see how late it comes: until cancelled."""
        self._began = self._window = self._clock()
        self._cpu_began = self._window_cpu = time.process_time()
        while True:
            asked = self._clock()
            await asyncio.sleep(EVERY_S)
            now = self._clock()
            self.lags.append(max(0.0, now - asked - EVERY_S))
            if now - self._window >= WINDOW_S:
                cpu = time.process_time()
                self.peak_cpu = max(self.peak_cpu, (cpu - self._window_cpu) / (now - self._window))
                self._window, self._window_cpu = now, cpu

    def cpu(self) -> float:
        """Of a core, over the whole run so far."""
        seconds = self._clock() - self._began
        return (time.process_time() - self._cpu_began) / seconds if seconds > 0 else 0.0
