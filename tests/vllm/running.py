"""A plugin of vLLM's that reports how many requests its scheduler runs at every step.

`watched` installs the plugin for every vLLM that starts in its context (Penstock's engine or vLLM's
own server), and yields the `Watch` that receives its reports.
"""

import contextlib
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOCKET = "RUNNING_COUNT_SOCKET"
RECORD = struct.Struct("dqq")


def plugin() -> Any:
    """Return the plugin's class, whose base class exists only in vLLM's processes."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class RunningCount(StatLoggerBase):  # type: ignore[misc] # vLLM's classes are untyped here
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

        def record(self, scheduler_stats: Any, *more: Any, **named: Any) -> None:
            if scheduler_stats is not None:
                counts = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs
                with contextlib.suppress(OSError):
                    record = RECORD.pack(time.monotonic(), *counts)
                    self._socket.sendto(record, os.environ[SOCKET])

        def log_engine_initialized(self) -> None:
            pass

    return RunningCount


def __getattr__(name: str) -> Any:
    if name == "RunningCount":
        return plugin()
    raise AttributeError(name)


class Watch:
    """The receiver of the reports: `records` grows by (monotonic time, running, waiting)."""

    def __init__(self, receiver: socket.socket) -> None:
        self.records: list[tuple[float, int, int]] = []
        self._changed = threading.Condition()
        self._receiver = receiver
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        while record := self._receiver.recv(RECORD.size):
            with self._changed:
                self.records.append(RECORD.unpack(record))
                self._changed.notify_all()

    def close(self) -> None:
        """Take no more reports, of which none is half read when the socket is closed."""
        self._receiver.shutdown(socket.SHUT_RDWR)
        self._reading.join()

    def until(self, running: int, since: float, limit_s: float = 30.0) -> float:
        """Wait until vLLM runs exactly `running` requests, and return when it did after `since`."""
        deadline = time.monotonic() + limit_s
        seen = 0
        with self._changed:
            while True:
                for when, num_running, _ in self.records[seen:]:
                    if when >= since and num_running == running:
                        return when
                seen = len(self.records)
                if not self._changed.wait(deadline - time.monotonic()):
                    last = self.records[-1:]
                    raise TimeoutError(f"vLLM did not come to {running} running; last: {last}")


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Install the plugin for this context and yield its `Watch`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        info = Path(folder) / "running_count-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: running-count\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            "[vllm.stat_logger_plugins]\nrunning_count = tests.vllm.running:RunningCount\n"
        )
        receiver = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        receiver.bind(f"{folder}/socket")
        root = str(Path(__file__).parent.parent.parent)
        wanted = {"PYTHONPATH": os.pathsep.join([folder, root]), SOCKET: f"{folder}/socket"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        watch = Watch(receiver)
        try:
            yield watch
        finally:
            watch.close()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value
