"""Says on the terminal how a model's loading goes.

In: what the engine writes while it loads. Out: one live line with the model, its size, how much of
it has been read and for how long it has been loading; nothing where this is not a terminal.
"""

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from penstock.settings import Settings


class LoadingDisplay:
    """A context in which the line stands until `stop`.

    llama.cpp prints a dot for each hundredth of the tensors' bytes; they are counted here.
    """

    def __init__(self, console: Console, settings: Settings) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(describe(settings), total=None)
        self._line = ""

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

    def stop(self) -> None:
        """Take the line away."""
        self._progress.stop()

    def feed(self, output: str) -> None:
        """Take what the engine wrote."""
        self._line = (self._line + output).rpartition("\n")[2]
        if self._line and set(self._line) == {"."}:
            self._progress.update(self._task, total=100, completed=len(self._line))


def describe(settings: Settings) -> str:
    """What is being loaded: its name, and its size where it is a file."""
    path = Path(settings.model)
    if settings.engine != "mock" and path.is_file():
        return f"Loading {settings.served_name} ({path.stat().st_size / 1e9:.1f} GB)"
    return f"Loading {settings.served_name}"
