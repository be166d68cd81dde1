"""An engine that loads its model only while a gate is open: a test decides when it is ready.

The gate is a named pipe. While the test holds its writing end, the gate is closed.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from penstock.engine.mock import Mock
from penstock.engine.protocol import ModelInfo


class Gate:
    """A gate at `path`, open at first."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._held = -1

    def close(self) -> None:
        """Let no engine start any more."""
        self._held = os.open(self.path, os.O_RDWR)

    def open(self) -> None:
        """Let every engine start, those that wait, too."""
        if self._held >= 0:
            os.close(self._held)
        self._held = -1


class Gated(Mock):
    """The mock engine; it does not start while the gate at `gate` is closed."""

    def __init__(self, *, name: str, gate: str) -> None:
        super().__init__(name=name, interval=0)
        self._gate = gate

    async def start(self) -> ModelInfo:
        """Wait until the gate is open."""
        pipe = os.open(self._gate, os.O_RDONLY | os.O_NONBLOCK)
        is_open = asyncio.Event()
        with contextlib.suppress(BlockingIOError):  # somebody can still write: it is closed
            os.read(pipe, 1)
            is_open.set()
        asyncio.get_running_loop().add_reader(pipe, is_open.set)
        await is_open.wait()
        asyncio.get_running_loop().remove_reader(pipe)
        os.close(pipe)
        return await super().start()
