"""A numbered mock engine whose prompts say when the server dies: no test must hit the moment.

The words of a prompt choose: "gated" is in prefill for as long as the file `gate` exists. "halved"
gets pieces of bytes, each of which ends within a character (see `halved_text`). "ending" kills the
server after its last token, once: it removes the file `once`. "poison" kills the server before its
first token, and "creeping" at the second token of each of its lives. "sampled" gets other pieces
from each engine, as an answer with a temperature does: they end with the process's id.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from penstock.engine.mock import Mock, prompt_text
from penstock.engine.protocol import EngineFinish, Sink
from penstock.request import Request

TARGET = "tests.support.lethal:Lethal"
GATE_S = 0.02
SIGN = "€"


def halved_text(word: str, num_tokens: int) -> str:
    """Return the answer to a prompt that begins with `word` and has the word "halved"."""
    return "".join([f"{word}:{index}{SIGN} " for index in range(num_tokens)])


class Lethal(Mock):
    """The mock engine. `folder` has the files `gate` and `once`."""

    def __init__(self, *, folder: str, **params: Any) -> None:
        super().__init__(numbered=True, **params)
        self._gate = Path(folder, "gate")
        self._once = Path(folder, "once")

    async def _speak(self, request: Request, words: Any, end: int, sink: Sink) -> None:
        prompt = prompt_text(request).split()
        while "gated" in prompt and self._gate.exists():  # noqa: ASYNC110 - another process
            await asyncio.sleep(GATE_S)
        if "poison" in prompt:
            kill_server()
        out: Any = sink
        if "creeping" in prompt:
            out = _Creeping(sink)
        if "halved" in prompt:
            out = _Halved(sink, len(request.generated), end - 1)
        if "sampled" in prompt:
            out = _Sampled(sink)
        if "ending" in prompt:
            out = _Ending(sink, self._once)
        await super()._speak(request, words, end, out)


def kill_server() -> None:
    """Kill the server that started this engine's process."""
    os.kill(os.getppid(), signal.SIGKILL)


class _Passing:
    """Passes everything on."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


class _Halved(_Passing):
    """Moves the end of each piece into the middle of the character that ends it."""

    def __init__(self, sink: Sink, first: int, last: int) -> None:
        super().__init__(sink)
        self._next = first
        self._last = last

    def delta(self, piece: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        sign = SIGN.encode()
        begin = sign[2:] + b" " if self._next else b""
        end = sign + b" " if self._next == self._last else sign[:2]
        self._next += 1
        self._sink.delta(begin + piece.strip().encode() + end, num_tokens, token_ids)


class _Creeping(_Passing):
    """Lets one token out, and kills the server."""

    _num_tokens = 0

    def delta(self, *arguments: Any) -> None:
        self._num_tokens += 1
        if self._num_tokens == 2:  # the first is on its way, and stored before it is shown
            kill_server()
        self._sink.delta(*arguments)


class _Sampled(_Passing):
    """Signs each piece with the process's id."""

    def delta(self, piece: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        self._sink.delta(f"{piece.strip()}@{os.getpid()} ", num_tokens, token_ids)


class _Ending(_Passing):
    """Kills the server instead of telling it that the answer is complete."""

    def __init__(self, sink: Sink, once: Path) -> None:
        super().__init__(sink)
        self._once = once

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        if self._once.exists():
            self._once.unlink()
            kill_server()
        else:
            self._sink.finish(reason, completion_tokens)
