"""Measures whether the client kept up: how late its event loop ran, and how much CPU it used.

An overloaded load generator measures itself: the time that bytes wait in this process looks like
latency of the server. So the client's own lateness is measured and reported too.
"""

import asyncio
import time

from penstock.bench.http import Clock

EVERY_S = 0.02
WINDOW_S = 1.0


class ClientMonitor:
    """Monitors this process while `run` runs.

    `lags`: how late each timer fired, in seconds. `peak_cpu`: the highest share of a core over one
    second.
    """

    def __init__(self, clock: Clock) -> None:
        self.lags: list[float] = []
        self.peak_cpu = 0.0
        self._clock = clock
        self._began = self._window = clock()
        self._cpu_began = self._window_cpu = time.process_time()

    async def run(self) -> None:
        """Set timers and record how late they fire, until cancelled."""
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
        """Return the share of a core that this process has used since `run` started."""
        seconds = self._clock() - self._began
        return (time.process_time() - self._cpu_began) / seconds if seconds > 0 else 0.0
