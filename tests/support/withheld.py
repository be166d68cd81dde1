"""An engine that loads only while a file exists."""

from pathlib import Path

from penstock.engine.mock import Mock
from penstock.engine.protocol import ModelInfo
from penstock.errors import StartError

WITHHELD = "tests.support.withheld:Withheld"


class Withheld(Mock):
    """The mock engine with an endless answer; it starts only if `file` exists."""

    def __init__(self, *, name: str, file: str) -> None:
        super().__init__(name=name, interval=0.02, length=100_000)
        self._file = Path(file)

    async def start(self) -> ModelInfo:
        """Start the mock. Raises StartError if the file does not exist."""
        if not self._file.exists():
            raise StartError("The model is not there.", "Bring it back.")
        return await super().start()
