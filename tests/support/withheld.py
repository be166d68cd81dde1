"""An engine that can be loaded only as long as a file is there."""

from pathlib import Path

from penstock.engine.mock import Mock
from penstock.engine.protocol import ModelInfo
from penstock.errors import StartError


class Withheld(Mock):
    """The mock, endless; `file` is the path."""

    def __init__(self, *, name: str, file: str) -> None:
        super().__init__(name=name, interval=0.02, length=100_000)
        self._file = Path(file)

    async def start(self) -> ModelInfo:
        """Raises StartError where the file is not there."""
        if not self._file.exists():
            raise StartError("The model is not there.", "Bring it back.")
        return await super().start()
