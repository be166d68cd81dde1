"""Says on the terminal how a model's loading goes.

In: the engine's process. Out: one live line with the model, how much of it is in memory and for how
long it has been loading; nothing where this is not a terminal.
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
    """A context in which the line stands until `stop`."""

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
        """Show the progress of this process."""
        self._progress.pid = pid

    def stop(self) -> None:
        """Take the line away."""
        self._progress.stop()


class _MemoryProgress(Progress):
    """A bar that is filled by the memory of a process: llama.cpp tells of no progress itself.

    `size` is the model's in bytes, or None where it is not known: then the bar only pulses.
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
    """Memory that a process has in use, in bytes; 0 where the system does not tell (Linux does)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
