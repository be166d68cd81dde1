"""Shares new connections among several processes: the one with the fewest takes the next.

In: the number of connections of each process, in memory that all of them share. Out: whether this
process accepts now (see `Turns` in `web.http1.accepting`). Each number has one writer. A process
that does not serve takes part with the number `ABSENT`; a process that has died or stands still
keeps its number, and nobody waits for it long.
"""

import mmap
import time
from collections.abc import Callable
from pathlib import Path

BYTES_EACH = 8
ABSENT = 2**64 - 1
# How long an event loop with fewer connections has to take the next one.
PATIENCE_S = 0.005
# For so long nobody waits again for an event loop that has not taken its turn.
PASS_OVER_S = 0.05
# While another process serves, and this one cannot.
ABSENT_PAUSE_S = 0.05


def new_loads(path: Path, number: int) -> Path:
    """Make the file of the numbers of `number` processes, none of which serves yet."""
    path.write_bytes(b"\xff" * BYTES_EACH * number)
    return path


class LeastConnections:
    """The turns of the process with the index `own`, whose number is in the file `path`.

    `is_ready` says whether this process can serve requests.
    """

    def __init__(
        self,
        path: Path,
        own: int,
        is_ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        with path.open("r+b") as file:
            self._loads = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self._own = own
        self._is_ready = is_ready
        self._clock = clock
        self._num_connections = 0
        self._waits_since = 0.0
        """When another process's turn began, on the clock; 0.0 if it is nobody's."""
        self._passed_over: dict[int, float] = {}
        """Processes that have not taken their turn → until when, on the clock."""
        self.publish()

    def publish(self) -> None:
        """Tell the others how many connections this process has, or that it is absent."""
        self._loads[self._own] = self._num_connections if self._is_ready() else ABSENT

    def delay(self) -> float | None:
        """Return None if it is this process's turn, else after how many seconds to ask again."""
        self.publish()
        own = self._loads[self._own]
        if own == ABSENT:
            return ABSENT_PAUSE_S if any(each != ABSENT for each in self._loads) else None
        now = self._clock()
        fewer = {index for index, load in enumerate(self._loads) if load < own}
        due = {index for index in fewer if self._passed_over.get(index, 0.0) < now}
        if due and now - (self._waits_since or now) < PATIENCE_S:
            self._waits_since = self._waits_since or now
            return 0.0
        self._passed_over |= dict.fromkeys(due, now + PASS_OVER_S)
        self._waits_since = 0.0
        return None

    def taken(self) -> None:
        """Count a connection that this process has accepted."""
        self._num_connections += 1
        self.publish()

    def closed(self) -> None:
        """Count a connection of this process that has ended."""
        self._num_connections -= 1
        self.publish()
