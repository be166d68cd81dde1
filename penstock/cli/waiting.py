"""Says how many streams a stopping server waits for, and how to end it now.

In: the number of streams, at most once a second. Out: a line on the terminal, or in the log if
standard error is none: there nobody can press Ctrl-C.
"""

import logging
from collections.abc import Callable

from rich.console import Console

log = logging.getLogger(__name__)


def waiting_report(console: Console, log_format: str) -> Callable[[int], None]:
    """Return the function that a server calls with the number of streams that it waits for."""
    if log_format == "text" and console.is_terminal:
        return _TerminalReport(console)
    return _log


class _TerminalReport:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_first = True

    def __call__(self, number: int) -> None:
        if self._is_first:  # the terminal has shown "^C" where the cursor is
            self._console.print()
        self._is_first = False
        self._console.print(f"waiting for {_streams(number)}; press Ctrl-C again to end now")


def _log(number: int) -> None:
    log.info("waiting for %s; a second signal ends them now", _streams(number))


def _streams(number: int) -> str:
    return f"{number:,} stream" if number == 1 else f"{number:,} streams"
