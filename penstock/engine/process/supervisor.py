"""The server's side of an engine's process: starts, watches and restarts it.

In: requests and their sinks. Out: calls of the sinks. If the process dies or hangs, every open
request is lost exactly once and a new process starts. Not known here: which engine runs in the
process, streams, HTTP.
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
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never, cast

from penstock.engine.process import messages
from penstock.engine.protocol import (
    Addition,
    Deliver,
    EngineState,
    LosableSink,
    ModelInfo,
    Tell,
)
from penstock.errors import EngineUnavailable, StartError
from penstock.request import Request

log = logging.getLogger(__name__)

# The wait before each attempt. An engine that has worked restarts at once: its streams wait.
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
STOP_TIMEOUT_S = 3.0
# The last messages of a dead process are in the socket, which a child of it may hold open.
LAST_MESSAGES_TIMEOUT_S = 1.0
STDERR_LINES_KEPT = 1000  # each of vLLM's processes writes a traceback of a hundred lines


class _Channel(asyncio.Protocol):
    """The server's end of the socket to the engine's process."""

    def __init__(self, receive: Callable[[list[messages.FromEngine]], None]) -> None:
        self._receive = receive
        self._deframer = messages.Deframer()
        self._decoder = messages.from_engine_decoder()
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost.set()

    def data_received(self, data: bytes) -> None:
        for body in self._deframer.feed(data):
            self._receive(self._decoder.decode(body))

    def send(self, message: messages.ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(messages.frame([message]))

    async def read_to_end(self) -> None:
        """Receive the messages that a process sent before it ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), LAST_MESSAGES_TIMEOUT_S)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def deliver_singly(
    batch: Sequence[messages.FromEngine], sinks: Mapping[str, LosableSink], tell: Tell
) -> None:
    """Deliver a batch by a call of a sink for each message (see `Deliver`)."""
    for message in batch:
        try:
            if not isinstance(message, Addition):
                tell(message)
            elif sink := sinks.get(message.request_id):
                sink.delta(message.piece, message.num_tokens, message.token_ids, message.logprobs)
        except Exception:  # a bug with one request must not reach the others
            log.exception("a message from the engine could not be handled")


class SupervisedEngine:
    """An `EngineHandle` for the engine `target` ("module:Class"), constructed with `options`.

    `on_spawn` is called with the id of each new process before it loads the model. A process that
    has requests and sends nothing for `hang_timeout` seconds counts as hung and is killed.
    `on_cancelled` is called with the number of seconds that the engine took to stop a request.
    `deliver` delivers the batches of the engine; by default every sink is called for itself.
    """

    def __init__(
        self,
        target: str,
        options: dict[str, Any],
        on_spawn: Callable[[int], None] = lambda pid: None,
        hang_timeout: float = 300.0,
        on_cancelled: Callable[[float], None] = lambda seconds: None,
        deliver: Deliver | None = None,
    ) -> None:
        self._start_message = messages.Start(target, options)
        self._on_spawn = on_spawn
        self._hang_timeout = hang_timeout
        self._on_cancelled = on_cancelled
        self._deliver = deliver or deliver_singly
        self._cancelling: dict[str, float] = {}
        """Cancelled requests that the engine has not yet stopped → when, on the monotonic clock."""
        self._sinks: dict[str, LosableSink] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._channel: _Channel | None = None
        self._started: asyncio.Future[ModelInfo] | None = None
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_LINES_KEPT)
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._has_requests = asyncio.Event()
        self._heard_at = 0.0
        """The last sign of life, or the first request since the last, on the loop's clock."""
        self._has_worked = False
        """True once the process has accepted a request: then its death is no failed start."""
        self.state: EngineState = "loading"
        self.info: ModelInfo | None = None
        self.num_restarts = 0

    @property
    def pid(self) -> int | None:
        """The id of the engine's process, or None if there is no process."""
        return self._process.pid if self._process is not None else None

    @property
    def num_requests(self) -> int:
        """The number of requests that the engine has not ended."""
        return len(self._sinks)

    async def start(self) -> ModelInfo:
        """Start the process and load the model. Raises StartError if the model cannot be loaded."""
        self.info = await self._spawn()
        self._tasks = [
            asyncio.create_task(self._supervise()),
            asyncio.create_task(self._kill_when_hung()),
        ]
        return self.info

    async def stop(self) -> None:
        """End the process and drop every request."""
        self.state = "stopped"
        self._ready.clear()
        for task in self._tasks:
            task.cancel()
        await self._end_process()

    async def until_ready(self) -> None:
        """Wait until requests can be submitted."""
        await self._ready.wait()

    def submit(self, request: Request, sink: LosableSink) -> None:
        """Send a request to the engine. Raises EngineUnavailable unless `state` is "ready"."""
        if self.state != "ready" or self._channel is None:
            raise EngineUnavailable(*_UNAVAILABLE[self.state], headers={"Retry-After": "1"})
        if not self._sinks:
            self._heard_at = asyncio.get_running_loop().time()
            self._has_requests.set()
        self._sinks[request.id] = sink
        self._channel.send(messages.Submit(request))

    def cancel(self, request_id: str) -> None:
        """Stop a request; its sink is told nothing more. Ignores unknown and ended ids."""
        if self._pop(request_id) is not None and self._channel is not None:
            self._cancelling[request_id] = time.monotonic()
            self._channel.send(messages.Cancel(request_id))

    def _pop(self, request_id: str) -> LosableSink | None:
        sink = self._sinks.pop(request_id, None)
        if not self._sinks:
            self._has_requests.clear()
        return sink

    def _receive(self, batch: list[messages.FromEngine]) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._deliver(batch, self._sinks, self._tell)

    def _tell(self, message: messages.Fact) -> None:
        match message:
            case messages.Finish(request_id, reason, completion_tokens):
                if sink := self._pop(request_id):
                    sink.finish(reason, completion_tokens)
            case messages.Fail(request_id, code, text):
                if sink := self._pop(request_id):
                    sink.fail(code, text)
            case messages.Accepted(request_id, prompt_ids, notes):
                self._has_worked = True
                if sink := self._sinks.get(request_id):
                    sink.accepted(prompt_ids, notes)
            case messages.Started(request_id):
                if sink := self._sinks.get(request_id):
                    sink.started()
            case messages.Cached(request_id, num_tokens):
                if sink := self._sinks.get(request_id):
                    sink.cached(num_tokens)
            case messages.Prompt(request_id, logprobs):
                if sink := self._sinks.get(request_id):
                    sink.prompt_logprobs(logprobs)
            case messages.Reasoning(request_id, text, num_tokens, token_ids):
                if sink := self._sinks.get(request_id):
                    sink.reasoning(text, num_tokens, token_ids)
            case messages.ToolCall(request_id, number, call_id, name, arguments, num_tokens):
                if sink := self._sinks.get(request_id):
                    sink.tool_call(number, call_id, name, arguments, num_tokens)
            case messages.Cancelled(request_id):
                if began := self._cancelling.pop(request_id, None):
                    self._on_cancelled(time.monotonic() - began)
            case messages.Working():
                pass  # it only updates `_heard_at`
            case messages.Ready(info):
                assert self._started is not None
                self._started.set_result(info)
            case messages.NotStarted(text, hint):
                assert self._started is not None
                self._started.set_exception(StartError(text, hint))
            case _:
                assert_never(message)

    async def _spawn(self) -> ModelInfo:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._stderr.clear()
        self._has_worked = False
        self._started = loop.create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "penstock.engine.process.worker", str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # its own group: killed as a whole, no Ctrl-C
            )
        except BaseException:
            ours.close()
            raise
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
                    f"The engine's process ended while loading ({self._cause_of_death()}).",
                    "Is there enough memory for the model?",
                )
            try:
                info = self._started.result()
            except StartError as error:
                await drain  # the process ends by itself; its first error is the cause
                raise StartError(f"{error} {self._first_error()}".strip(), error.hint) from None
        except BaseException:
            await self._end_process()
            raise
        finally:
            gone.cancel()
        self.state = "ready"
        self._ready.set()
        self._stderr.clear()  # an error while loading would not explain a later death
        return info

    async def _supervise(self) -> None:
        """Restart the process and tell the sinks whenever it dies, until cancelled."""
        num_failures = 0
        while True:
            assert self._process is not None
            assert self._channel is not None
            await self._process.wait()
            self.state = "down"
            self._ready.clear()
            await self._channel.read_to_end()
            log.error("the engine's process ended (%s); restarting it", self._cause_of_death())
            await self._end_process()
            sinks, self._sinks = self._sinks, {}
            self._cancelling.clear()
            self._has_requests.clear()
            for sink in sinks.values():
                sink.lost()
            num_failures = 0 if self._has_worked else num_failures + 1
            await self._restart(num_failures)
            self.num_restarts += 1
            log.warning("the engine is ready again")

    async def _restart(self, num_failures: int) -> None:
        """Start a process, waiting longer before each attempt the more attempts have failed."""
        while True:
            delay = RESTART_DELAYS_S[min(num_failures, len(RESTART_DELAYS_S) - 1)]
            await asyncio.sleep(delay)
            try:
                self.info = await self._spawn()
            except (StartError, OSError) as error:
                num_failures += 1
                log.error("the engine did not come back (attempt %d): %s", num_failures, error)
            else:
                return

    async def _kill_when_hung(self) -> None:
        """Kill the process whenever it has requests and is silent too long, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._has_requests.wait()
            left = self._heard_at + self._hang_timeout - loop.time()
            if left > 0:
                await asyncio.sleep(left)
                continue
            # If this process was blocked, the engine's messages are unread: read them first.
            heard_at = self._heard_at
            await asyncio.sleep(min(1.0, self._hang_timeout / 10))
            if self._heard_at == heard_at and self._has_requests.is_set() and self._process:
                log.error("the engine has been silent for %g s; killing it", self._hang_timeout)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._heard_at = loop.time()

    async def _end_process(self) -> None:
        """Close the socket, wait up to `STOP_TIMEOUT_S`, then kill the whole process group."""
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
            # The engine may have started processes, which outlive it.
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

    def _cause_of_death(self) -> str:
        """Return the exit status and the first error that the process wrote."""
        assert self._process is not None
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return f"{how}. {self._first_error()}".strip(". ")

    def _first_error(self) -> str:
        """Return the first error that the process wrote; later errors mostly follow from it."""
        for line in self._stderr:
            if found := _ERROR.search(line):
                return f"It says: {found[1] or found[2]}"
        return ""


# An error in llama.cpp's log, in Python's traceback, or in a traceback inside vLLM's log.
_ERROR = re.compile(r"\bE (?:\w+ +)?\w+: (.+)|(?:^|\] )((?:\w+\.)*\w*Error: .+)")

_UNAVAILABLE = {
    "loading": ("engine_loading", "The model is still loading. Try again in a moment."),
    "down": ("engine_down", "The engine stopped and is being restarted. Try again in a moment."),
    "stopped": ("draining", "The server is shutting down."),
}
