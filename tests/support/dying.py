"""llama.cpp in a process that kills itself at a chosen token: no test must hit the moment.

In: a file that the test makes when the next answer shall be cut off. The engine removes it and
dies, once. Out: a server in which one engine died in the middle of one answer.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.hub import find_model
from penstock.engine.protocol import Sink
from penstock.request import Request
from tests.support.raw import Response, ask
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually


class DyingSink:
    """Passes everything on, and kills the process once `after` tokens have left it.

    Nothing leaves it after these: llama.cpp may have written more, even the end, that is read in
    one piece with them.
    """

    def __init__(self, sink: Sink, after: int) -> None:
        self._sink = sink
        self._num_left = after

    def __getattr__(self, name: str) -> Any:
        passed = getattr(self._sink, name)

        def call(*arguments: Any, **named: Any) -> None:
            if self._num_left > 0:
                passed(*arguments, **named)

        return call

    def delta(self, piece: str | bytes, num_tokens: int, *rest: Any) -> None:
        if self._num_left > 0:
            self._sink.delta(piece, num_tokens, *rest)
            self._count(num_tokens)

    def reasoning(self, text: str, num_tokens: int, *rest: Any) -> None:
        if self._num_left > 0:
            self._sink.reasoning(text, num_tokens, *rest)
            self._count(num_tokens)

    def tool_call(self, number: int, call_id: str, name: str, text: str, num_tokens: int) -> None:
        if self._num_left > 0:
            self._sink.tool_call(number, call_id, name, text, num_tokens)
            self._count(num_tokens)

    def _count(self, num_tokens: int) -> None:
        self._num_left -= num_tokens
        if self._num_left <= 0:  # behind the call that sends what was pushed so far
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGKILL)


class Dying(LlamaCpp):
    """llama.cpp. It dies after `after` tokens of the first request that finds `file`."""

    def __init__(
        self, *, name: str, file: str, after: int, model: str = "rill", **params: Any
    ) -> None:
        super().__init__(model=str(find_model(model)), name=name, slots=4, **params)
        self._file = Path(file)
        self._after = after

    def submit(self, request: Request, sink: Sink) -> None:
        """Submit the request. If the file exists, remove it: this request is deadly."""
        if self._file.exists():
            self._file.unlink()
            sink = DyingSink(sink, self._after)
        super().submit(request, sink)


@dataclass(frozen=True)
class MortalServer:
    """A running server whose engine can be told to die."""

    running: RunningServer
    file: Path

    def undisturbed(self, sent: bytes) -> Response:
        """Send a request and read its answer."""
        return ask(self.running.port, sent)

    def cut_off(self, sent: bytes) -> Response:
        """Send a request and read its answer, in the middle of which the engine dies."""
        self.file.touch()
        answer = ask(self.running.port, sent)
        assert not self.file.exists()
        assert eventually(lambda: "restarting" in "".join(self.running.output))
        return answer


@contextlib.contextmanager
def mortal(folder: Path, *arguments: str, after: int = 20, **flags: Any) -> Iterator[MortalServer]:
    """Yield a server with llama.cpp, whose engine dies after `after` tokens of an answer.

    `arguments` are the engine's own, as name=value.
    """
    file = folder / "die"
    own = [f"file={file}", f"after={after}", *arguments]
    with serve(engine="tests.support.dying:Dying", engine_arg=own, **flags) as running:
        yield MortalServer(running, file)
