"""A mock engine that takes its time until a test is in a hurry: then its answers end at once.

So an answer lasts as long as a test needs it, on a busy machine, too, and nobody waits for its end.
In: the file `hurry`, which the test makes and removes.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.engine.mock import Mock
from penstock.engine.protocol import Sink
from penstock.request import Request

ENGINE = "tests.support.hurried:Hurried"
LOOK_EVERY_S = 0.02


class Hurry:
    """What a test has in hand: its engine's answers come at once while the file exists."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def argument(self) -> str:
        """The engine's argument."""
        return f"hurry={self._file}"

    @contextmanager
    def over(self) -> Iterator[None]:
        """Let answers begin slowly again. At the end, let those that still run end at once."""
        self._file.unlink(missing_ok=True)
        try:
            yield
        finally:
            self.now()

    def now(self) -> None:
        """Let all answers end at once."""
        self._file.touch()


class Hurried(Mock):
    """The mock engine. `hurry` is the file that makes it hurry."""

    def __init__(self, *, hurry: str, **params: Any) -> None:
        super().__init__(**params)
        self._hurry = Path(hurry)
        self._slow_s = self._interval

    async def _speak(self, request: Request, words: Iterator[str], end: int, sink: Sink) -> None:
        looking = asyncio.create_task(self._look())
        try:
            await super()._speak(request, words, end, sink)
        finally:
            looking.cancel()

    async def _look(self) -> None:
        while True:
            self._interval = 0.0 if self._hurry.exists() else self._slow_s
            await asyncio.sleep(LOOK_EVERY_S)
