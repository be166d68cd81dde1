"""Makes sure that standard input, output and error are open, and that writing to them never fails.

In: this process's descriptors 0, 1 and 2, in whatever state they were inherited. Out: open ones.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

_NAMES = ("stdin", "stdout", "stderr")


def open_standard_files() -> None:
    """Open the null device for each standard file that was closed when the process began.

    Otherwise the next file or socket that is opened would become standard error.
    """
    for descriptor, name in enumerate(_NAMES):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


@contextlib.contextmanager
def stderr_to(write: Callable[[str], None]) -> Iterator[None]:
    """Pass all text that is written to `sys.stderr` to `write`, which must not fail or wait."""
    before = sys.stderr
    sys.stderr = _Passed(write, before)
    try:
        yield
    finally:
        sys.stderr = before


class _Passed(io.TextIOBase):
    """A text file that passes what is written to it to a function."""

    encoding = "utf-8"

    def __init__(self, write: Callable[[str], None], instead_of: TextIO) -> None:
        self._write = write
        self._instead_of = instead_of

    def write(self, text: str) -> int:
        """Pass the text on."""
        self._write(text)
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return True if the file that this one replaces is a terminal."""
        return self._instead_of.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the file that this one replaces."""
        return self._instead_of.fileno()
