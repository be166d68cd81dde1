"""An engine in a process of its own, as the server sees it.

In: requests and their sinks. Out: what the engine's process says, told to the sinks; if that
process dies, every open request fails exactly once and a new process is started. Not known here:
which engine runs in there, streams, HTTP.
"""

import asyncio
import collections
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, assert_never, cast

from penstock.engine import wire
from penstock.engine.protocol import ModelInfo, Sink
from penstock.errors import StartError, Unavailable
from penstock.request import Request

log = logging.getLogger(__name__)

RESTART_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
STOP_TIMEOUT_S = 3.0
STDERR_LINES_KEPT = 1000  # vLLM's processes each write their traceback, of a hundred lines


class _Channel(asyncio.Protocol):
    """The server's end of the socket to the engine's process."""

    def __init__(self, receive: Callable[[wire.FromEngine], None]) -> None:
        self._receive = receive
        self._deframer = wire.Deframer()
        self._decoder = wire.from_engine_decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        for body in self._deframer.feed(data):
            for message in self._decoder.decode(body):
                self._receive(message)

    def send(self, message: wire.ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(wire.frame([message]))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class ChildEngine:
    """Runs the engine that `target` ("module:Class") names, constructed with `options`.

    `state` is "loading", "ready", "down" (died, being restarted) or "stopped". `on_spawn` is told
    the id of each new process, before the model is loaded in it.
    """

    def __init__(
        self,
        target: str,
        options: dict[str, Any],
        on_spawn: Callable[[int], None] = lambda pid: None,
    ) -> None:
        self._start_message = wire.Start(target, options)
        self._on_spawn = on_spawn
        self._sinks: dict[str, Sink] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._channel: _Channel | None = None
        self._started: asyncio.Future[ModelInfo] | None = None
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_LINES_KEPT)
        self._supervisor: asyncio.Task[None] | None = None
        self.state = "loading"
        self.info: ModelInfo | None = None

    @property
    def pid(self) -> int | None:
        """The engine's process, if there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def num_requests(self) -> int:
        """Requests that the engine has and has not ended."""
        return len(self._sinks)

    async def start(self) -> ModelInfo:
        """Start the process and load the model. Raises StartError."""
        self.info = await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise())
        return self.info

    async def stop(self) -> None:
        """End the process; whatever still runs in it is dropped."""
        self.state = "stopped"
        if self._supervisor is not None:
            self._supervisor.cancel()
        await self._end_process()

    def submit(self, request: Request, sink: Sink) -> None:
        """Hand a request to the engine. Raises Unavailable while there is none."""
        if self.state != "ready" or self._channel is None:
            raise Unavailable(*_UNAVAILABLE[self.state], headers={"Retry-After": "1"})
        self._sinks[request.id] = sink
        self._channel.send(wire.Submit(request))

    def cancel(self, request_id: str) -> None:
        """Stop a request; its sink hears nothing more of it."""
        if self._sinks.pop(request_id, None) is not None and self._channel is not None:
            self._channel.send(wire.Cancel(request_id))

    def _receive(self, message: wire.FromEngine) -> None:
        match message:
            case wire.Delta(request_id, piece, num_tokens, token_ids):
                if sink := self._sinks.get(request_id):
                    sink.delta(piece, num_tokens, token_ids)
            case wire.Finish(request_id, reason, completion_tokens):
                if sink := self._sinks.pop(request_id, None):
                    sink.finish(reason, completion_tokens)
            case wire.Fail(request_id, code, text):
                if sink := self._sinks.pop(request_id, None):
                    sink.fail(code, text)
            case wire.Accepted(request_id, prompt_tokens):
                if sink := self._sinks.get(request_id):
                    sink.accepted(prompt_tokens)
            case wire.Started(request_id):
                if sink := self._sinks.get(request_id):
                    sink.started()
            case wire.Ready(info):
                assert self._started is not None
                self._started.set_result(info)
            case wire.NotStarted(text, hint):
                assert self._started is not None
                self._started.set_exception(StartError(text, hint))
            case _:
                assert_never(message)

    async def _spawn(self) -> ModelInfo:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._stderr.clear()
        self._started = loop.create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "penstock.engine.worker", str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a group of its own: killed whole, deaf to the terminal
            )
        finally:
            theirs.close()
        _, self._channel = await loop.create_connection(lambda: _Channel(self._receive), sock=ours)
        self._on_spawn(self._process.pid)
        self._channel.send(self._start_message)
        drain = asyncio.create_task(self._read_stderr(self._process))
        gone = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait((self._started, gone), return_when=asyncio.FIRST_COMPLETED)
            if not self._started.done():
                await drain
                raise StartError(
                    f"The engine's process ended while loading ({self._obituary()}).",
                    "Is there enough memory for the model?",
                )
            try:
                info = self._started.result()
            except StartError as error:
                await drain  # the process ends by itself; the cause is what it wrote first
                raise StartError(f"{error} {self._first_complaint()}".strip(), error.hint) from None
        except BaseException:
            await self._end_process()
            raise
        finally:
            gone.cancel()
        self.state = "ready"
        self._stderr.clear()  # what was said while loading is not what it may die of
        return info

    async def _supervise(self) -> None:
        """Wait for the process to die, fail what ran in it, start another: for ever."""
        while True:
            assert self._process is not None
            await self._process.wait()
            self.state = "down"
            log.error("the engine's process ended (%s); restarting it", self._obituary())
            sinks, self._sinks = self._sinks, {}
            for sink in sinks.values():
                sink.fail(
                    "engine_died",
                    "The engine stopped unexpectedly and is being restarted. Send the request "
                    "again in a moment.",
                )
            await self._end_process()
            await self._restart()

    async def _restart(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            try:
                self.info = await self._spawn()
            except (StartError, OSError) as error:
                attempt += 1
                log.error("the engine did not come back (attempt %d): %s", attempt, error)
            else:
                log.warning("the engine is back")
                return

    async def _end_process(self) -> None:
        """End the process group, politely first; nothing of it is left afterwards."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        process = self._process
        if process is None:
            return
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            pass
        finally:
            # Also what the engine itself may have started: its group outlives its leader.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            self._process = None
        await process.wait()

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        tail = ""
        while data := await process.stderr.read(65536):
            text = data.decode("utf-8", "replace")
            *lines, tail = (tail + text).split("\n")
            for line in lines:
                self._stderr.append(line)
                log.debug("engine: %s", line)
        if tail:
            self._stderr.append(tail)

    def _obituary(self) -> str:
        """How the process ended, and why as far as it said."""
        assert self._process is not None
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return f"{how}. {self._first_complaint()}".strip(". ")

    def _first_complaint(self) -> str:
        """The first error that the process wrote: those after it mostly follow from it."""
        for line in self._stderr:
            if found := _COMPLAINT.search(line):
                return f"It says: {found[1] or found[2]}"
        return ""


# How llama.cpp's log, Python, and vLLM's log with a traceback in it say what is wrong.
_COMPLAINT = re.compile(r"\bE (?:\w+ +)?\w+: (.+)|(?:^|\] )((?:\w+\.)*\w*Error: .+)")

_UNAVAILABLE = {
    "loading": ("engine_loading", "The model is still loading. Try again in a moment."),
    "down": ("engine_down", "The engine stopped and is being restarted. Try again in a moment."),
    "stopped": ("draining", "The server is shutting down."),
}
