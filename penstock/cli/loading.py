"""Shows a model's loading progress on the terminal.

In: the id of the engine's process. Out: one live line with the model's name, how much of it is in
memory and the time since loading began; nothing if standard error is not a terminal.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from penstock.engine.catalog import entry_of
from penstock.settings import Settings


class LoadingDisplay:
    """A context manager that shows the progress line until `stop`."""

    def __init__(self, console: Console, settings: Settings) -> None:
        path = Path(settings.model).expanduser()
        uses_model = entry_of(settings.engine).uses_model != "never"
        size = path.stat().st_size if uses_model and path.is_file() else None
        self._progress = _MemoryProgress(console, f"Loading {settings.served_name}", size)

    def __enter__(self) -> "LoadingDisplay":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def watch(self, pid: int) -> None:
        """Show the progress of the engine's process `pid`."""
        self._progress.pid = pid

    def stop(self) -> None:
        """Remove the progress line."""
        self._progress.stop()


class _MemoryProgress(Progress):
    """A progress bar that follows a process's memory, because llama.cpp reports no progress.

    `size` is the model's size in bytes, or None if it is unknown: then the bar only pulses.
    """

    def __init__(self, console: Console, description: str, size: int | None) -> None:
        self.pid: int | None = None
        self._size = size
        amount = (DownloadColumn(),) if size else ()
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            *amount,
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.add_task(description, total=size)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.pid is not None and self._size is not None:
            for task in self.tasks:
                task.completed = min(resident_bytes(self.pid), self._size)
        yield from super().get_renderables()


def resident_bytes(pid: int) -> int:
    """Return the memory that a process uses, in bytes; 0 if unknown (not on Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
