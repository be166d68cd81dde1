"""One server process, as its supervisor sees it: started, listened to, and started again.

In: the process's share of the machine, and the listening sockets. Out: a running process, what it
says, and its end with the reason in the log. Not known here: the other processes.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.children import manner_of
from penstock.engine.protocol import ModelInfo
from penstock.errors import StartError
from penstock.processes import messages
from penstock.processes.division import Share
from penstock.processes.member import settings_to
from penstock.processes.messages import FromServer, Link, ToServer, link_to_server

log = logging.getLogger(__name__)

PROGRAM = "penstock.cli.member"
# The wait before each start, by the number of processes in a row that ended soon.
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
# A process that has served for so long did not end soon.
CALM_S = 60.0
# How many looks in a row may find that a process has said nothing since the last one.
MAX_SILENT_LOOKS = 10
# A process that has said nothing yet still starts Python.
MAX_LOOKS_BEFORE_FIRST_WORD = 60
# A process that has closed its link has only its log to write.
EXIT_TIMEOUT_S = 5.0


class Child:
    """A server process with the number `number`. `run` keeps one running until `stop`.

    `started` gets the model's information when the first process is ready, or the StartError for
    which it did not start. The callbacks get what happens: `on_loading` the id of an engine's
    process, `on_state` nothing, `on_wanted` the number of a question for all metrics, `on_end` the
    last metrics of a process that ended unexpectedly.
    """

    def __init__(
        self,
        number: int,
        share: Share,
        listeners: Sequence[socket.socket],
        loads: Path,
        *,
        on_loading: Callable[[int], None],
        on_state: Callable[[], None],
        on_wanted: Callable[["Child", int], None],
        on_end: Callable[[list[messages.Family]], None],
    ) -> None:
        self.number = number
        self.state = "starting"
        self.num_streams = 0
        """The number of open streams, as the process last said."""
        self.families: list[messages.Family] = []
        """The last metrics that the process has sent."""
        self.started: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self._share = share
        self._listeners = listeners
        self._loads = loads
        self._on_loading = on_loading
        self._on_state = on_state
        self._on_wanted = on_wanted
        self._on_end = on_end
        self._process: asyncio.subprocess.Process | None = None
        self._link: Link[ToServer, FromServer] | None = None
        self._stopping = asyncio.Event()
        self._has_spoken = False
        self._num_silent_looks = 0
        self._questions = itertools.count(1)
        self._answers: dict[int, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Keep a process running until `stop`, or until the first one does not start."""
        num_in_a_row = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            ended = await self._live()
            self.num_streams = 0
            if self._stopping.is_set():
                return
            if not self.started.done():
                self.started.set_exception(
                    StartError(
                        f"A server process ended before it was ready ({ended}).",
                        "If the lines above do not say why, try without --processes.",
                    )
                )
            if self.started.exception() is not None:
                return
            self._on_end(self.families)
            self.families = []
            num_in_a_row = 1 if time.monotonic() - began > CALM_S else num_in_a_row + 1
            log.error("server process %d ended (%s); starting another", self.number, ended)
            with contextlib.suppress(TimeoutError):
                delay = RESTART_DELAYS_S[min(num_in_a_row, len(RESTART_DELAYS_S)) - 1]
                await asyncio.wait_for(self._stopping.wait(), delay)

    def stop(self) -> None:
        """Have the process drain its streams and end; at once, if this is the second call."""
        self._stopping.set()
        self._say(messages.Stop())
        if self._process is not None and not self._has_spoken:  # it has nothing to end yet
            self._kill(self._process)

    def reload(self) -> None:
        """Have the process read the file of keys again."""
        self._say(messages.Reload())

    def tell_states(self, states: dict[int, str]) -> None:
        """Tell the process the states of all server processes, by their numbers."""
        self._say(messages.States(states))

    def tell_metrics(self, question: int, families: list[messages.Family]) -> None:
        """Tell the process the metrics of all, which it wanted."""
        self._say(messages.Combined(question, families))

    async def collect(self) -> None:
        """Bring `families` up to date. Ends also when the process does."""
        if self._link is None or not self._has_spoken:
            return
        question = next(self._questions)
        answer = self._answers[question] = asyncio.get_running_loop().create_future()
        self._say(messages.Collect(question))
        try:
            await answer
        finally:
            self._answers.pop(question, None)

    def look(self) -> None:
        """Kill the process if it has been silent for too many looks.

        Looks are counted, not seconds: if this process itself stands still, only one passes.
        """
        self._num_silent_looks += 1
        most = MAX_SILENT_LOOKS if self._has_spoken else MAX_LOOKS_BEFORE_FIRST_WORD
        if self._process is not None and self._num_silent_looks > most:
            log.error("server process %d is silent; killing it", self.number)
            self._num_silent_looks = 0
            self._kill(self._process)

    def _say(self, message: ToServer) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _live(self) -> str:
        """Start a process and listen to it until it ends. Return how it ended."""
        try:
            process, link = await self._spawn()
        except OSError as error:
            return error.strerror or type(error).__name__
        self._process, self._link = process, link
        self._has_spoken, self._num_silent_looks = False, 0
        # While all load the model, one answers that they do. Later, only ready ones accept.
        is_first = not self.started.done()
        link.send(
            messages.Start(
                *(settings_to(self._share.settings), self.number, self._share.cores),
                accepts_at_once=is_first and self.number == 1,
                has_private_log=self._share.has_private_log,
                loads=str(self._loads),
            )
        )
        if self._stopping.is_set():
            link.send(messages.Stop())
        try:
            while (message := await link.receive()) is not None:
                self._receive(message)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), EXIT_TIMEOUT_S)
        finally:
            self._kill(process)
            self._process = self._link = None
            link.close()
            for answer in self._answers.values():
                answer.set_result(None)
            self._answers.clear()
            self._enter("down")
        return manner_of(await process.wait())

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, Link[ToServer, FromServer]]:
        ours, theirs = socket.socketpair()
        try:
            inherited = [each.fileno() for each in (theirs, *self._listeners)]
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", PROGRAM, str(os.getpid()), *map(str, inherited)),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self._share.environment},
                pass_fds=inherited,
                start_new_session=True,  # its own group: no Ctrl-C
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, await link_to_server(ours)

    def _receive(self, message: FromServer) -> None:
        self._has_spoken, self._num_silent_looks = True, 0
        match message:
            case messages.Beat(state, num_streams):
                self.num_streams = num_streams
                self._enter(state)
            case messages.Loading(pid):
                self._on_loading(pid)
            case messages.Ready(info):
                self._enter("ready")
                if self.started.done():
                    log.warning("server process %d is ready again", self.number)
                else:
                    self.started.set_result(info)
            case messages.NotStarted(text, hint):
                if self.started.done():
                    log.error("server process %d does not start: %s", self.number, text)
                else:
                    self.started.set_exception(StartError(text, hint))
            case messages.Counts(question, families):
                self.families = families
                if answer := self._answers.pop(question, None):
                    answer.set_result(None)
            case messages.Wanted(question):
                self._on_wanted(self, question)

    def _enter(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._on_state()

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
