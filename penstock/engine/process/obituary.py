"""Why an engine's process ended: what it last wrote.

In: the process's standard error. Out: a few words for the log. Nothing that a process does on its
way out makes any of this fail. Not known here: who asks.
"""

import asyncio
import collections
import logging
import re

log = logging.getLogger(__name__)

NUM_LINES_KEPT = 1000  # each of vLLM's processes writes a traceback of a hundred lines
MAX_LINE_CHARACTERS = 4096
READ_BYTES = 65536

# An error in llama.cpp's log, in Python's traceback, or in a traceback inside vLLM's log.
_ERROR = re.compile(r"\bE (?:\w+ +)?\w+: (.+)|(?:^|\] )((?:\w+\.)*\w*Error: .+)")


class LastWords:
    """The last lines that a process wrote to standard error."""

    def __init__(self) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=NUM_LINES_KEPT)

    async def read(self, stderr: asyncio.StreamReader) -> None:
        """Read all lines until the process closes standard error. Cuts long lines."""
        begun = ""
        while data := await stderr.read(READ_BYTES):
            *lines, begun = (begun + data.decode("utf-8", "replace")).split("\n")
            begun = begun[:MAX_LINE_CHARACTERS]
            for line in lines:
                self._lines.append(line[:MAX_LINE_CHARACTERS])
                log.debug("engine: %s", line)
        if begun:
            self._lines.append(begun)

    def forget(self) -> None:
        """Forget the lines so far."""
        self._lines.clear()

    def first_error(self) -> str:
        """Return the first error among the lines; later errors mostly follow from it."""
        for line in self._lines:
            if found := _ERROR.search(line):
                return f"It says: {found[1] or found[2]}"
        return ""
