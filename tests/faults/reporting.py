"""A server whose mock engine reports each of its acts, with the time, from its own process.

    python -m tests.faults.reporting serve --engine mock --engine-arg report=FILE ...

In: the engine's requests. Out: a line in a file for each act. Times are the system's monotonic
clock, so a client's times and the engine's can be compared.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from penstock.cli.main import main
from penstock.engine.catalog import ENGINES
from penstock.engine.mock import Mock
from penstock.engine.protocol import EngineFinish, Sink
from penstock.events import PromptLogprobs, TokenLogprob
from penstock.request import Request
from tests.faults.history import EngineAct, EngineDid, History


class Report:
    """A file of lines that are complete even if the process is killed."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, what: EngineAct, request_id: str) -> None:
        os.write(self._file, f"{time.monotonic()!r} {what} {request_id}\n".encode())


class ReportingSink:
    """A sink that reports each token, then passes it on."""

    def __init__(self, request_id: str, sink: Sink, report: Report) -> None:
        self._id, self._sink, self._report = request_id, sink, report

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        self._sink.accepted(prompt_ids, notes)

    def started(self) -> None:
        self._sink.started()

    def working(self, num_read: int = 0) -> None:
        self._sink.working(num_read)

    def interrupted(self, *, waits: bool) -> None:
        self._sink.interrupted(waits=waits)

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        self._sink.cached(num_tokens, prompt_tokens)

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        self._sink.prompt_logprobs(logprobs)

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        for _ in range(num_tokens):
            self._report.say("token", self._id)
        self._sink.delta(piece, num_tokens, token_ids, logprobs)

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        self._sink.reasoning(text, num_tokens, token_ids)

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        self._sink.tool_call(number, call_id, name, arguments, num_tokens)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        self._report.say("finished", self._id)
        self._sink.finish(reason, completion_tokens)

    def fail(self, code: str, message: str) -> None:
        self._report.say("finished", self._id)
        self._sink.fail(code, message)


class ReportingMock(Mock):
    """The mock engine with reports. `report` is the path of their file."""

    def __init__(self, *, report: str, **options: Any) -> None:
        super().__init__(**options)
        self._report = Report(report)

    def submit(self, request: Request, sink: Sink) -> None:
        self._report.say("submitted", request.id)
        super().submit(request, ReportingSink(request.id, sink, self._report))

    def cancel(self, request_id: str, stopped: Callable[[], None]) -> None:
        self._report.say("cancelled", request_id)
        super().cancel(request_id, stopped)


class Reports:
    """A reader of the engine's reports, which remembers where it stopped."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open()

    def read(self) -> list[tuple[str, EngineDid]]:
        """Return the new reports: a stream's id and an act each."""
        found: list[tuple[str, EngineDid]] = []
        for line in self._file:
            when, what, stream = line.split()
            found.append((stream, EngineDid(float(when), _ACTS[what])))
        return found

    def into(self, history: History) -> None:
        """Add the new reports to a history."""
        for stream, entry in self.read():
            history.add(stream, entry)

    def close(self) -> None:
        self._file.close()


_ACTS: dict[str, EngineAct] = {act: act for act in get_args(EngineAct)}

if __name__ == "__main__":
    target = "tests.faults.reporting:ReportingMock"
    ENGINES["mock"] = dataclasses.replace(ENGINES["mock"], target=target)
    sys.argv[0] = "penstock"
    main()
