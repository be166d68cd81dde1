"""An engine that fails every request while a file exists."""

from pathlib import Path

from penstock.engine.mock import Mock
from penstock.engine.protocol import Sink
from penstock.request import Request


class Failing(Mock):
    """The mock engine; while `file` exists, no request and no trial gets a token."""

    def __init__(self, *, name: str, file: str) -> None:
        super().__init__(name=name, interval=0)
        self._file = Path(file)

    async def check(self, *, tries: bool) -> None:
        """Raise if a token is asked for and there is none."""
        if tries and self._file.exists():
            raise RuntimeError("no token")

    async def _run(self, request: Request, sink: Sink) -> None:
        if self._file.exists():
            sink.fail("engine_error", "It cannot compute.")
        else:
            await super()._run(request, sink)
