"""A server that counts what its main thread does between two signals.

    COUNTS=FILE python -m tests.support.counting serve ...

SIGUSR1 begins, SIGUSR2 ends. Each adds a line of JSON to FILE. The second line has the numbers of
calls of Python and C functions, and of objects that were made meanwhile and are still there. Any
process of this user may trace the server (strace).
"""

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from penstock.cli.main import main
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

VARIABLE = "COUNTS"
PR_SET_PTRACER = 0x59616D61
ANY_PROCESS = ctypes.c_ulong(-1)


class Counter:
    """Counts in this process. `begin` and `end` are handlers of signals."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._calls = self._blocks = 0

    def begin(self, *_: object) -> None:
        gc.collect()
        self._calls = 0
        self._say({})
        self._blocks = sys.getallocatedblocks()
        sys.setprofile(self._count)

    def end(self, *_: object) -> None:
        sys.setprofile(None)
        gc.collect()
        objects = sys.getallocatedblocks() - self._blocks
        self._say({"calls": self._calls, "objects": objects})

    def _count(self, frame: FrameType, event: str, arg: Any) -> None:
        self._calls += event in ("call", "c_call")

    def _say(self, counts: dict[str, int]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(counts) + "\n")


class CountedServer:
    """A server that counts."""

    def __init__(self, server: RunningServer, path: Path) -> None:
        self.port, self.pid = server.port, server.pid
        self._path = path

    def counted(self, run: Callable[[], object]) -> dict[str, float]:
        """Return the counts of what the server does during `run`."""
        self._signal(signal.SIGUSR1)
        run()
        counts: dict[str, float] = json.loads(self._signal(signal.SIGUSR2))
        return counts

    def _signal(self, number: signal.Signals) -> str:
        """Send a signal; wait for the line that answers it, and return the line."""
        before = len(self._lines())
        os.kill(self.pid, number)
        assert eventually(lambda: len(self._lines()) > before)
        return self._lines()[-1]

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        return self._path.read_text(encoding="utf-8").splitlines(keepends=True)


@contextlib.contextmanager
def counting_server(folder: Path, **flags: object) -> Iterator[CountedServer]:
    """Yield a server that counts, with the flags of `serve`."""
    path = folder / "counts"
    os.environ[VARIABLE] = str(path)
    try:
        with serve(module="tests.support.counting", **flags) as server:
            yield CountedServer(server, path)
    finally:
        del os.environ[VARIABLE]


if __name__ == "__main__":
    counter = Counter(Path(os.environ.pop(VARIABLE)))
    signal.signal(signal.SIGUSR1, counter.begin)
    signal.signal(signal.SIGUSR2, counter.end)
    with contextlib.suppress(AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY_PROCESS)
    sys.argv[0] = "penstock"
    main()
