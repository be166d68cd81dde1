"""The server's side of an engine's process: starts, watches and restarts it.

In: requests and their sinks. Out: calls of the sinks. If the process dies or hangs, every open
request is lost exactly once and a new process starts. Not known here: which engine runs in the
process, streams, HTTP.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from penstock import folders
from penstock.children import manner_of
from penstock.engine.process import messages
from penstock.engine.process.channel import Channel
from penstock.engine.process.obituary import LastWords
from penstock.engine.protocol import (
    Addition,
    Deliver,
    EngineState,
    LosableSink,
    ModelInfo,
    Tell,
    UpstreamState,
)
from penstock.engine.upstreams import UpstreamCounts
from penstock.errors import EngineUnavailable, StartError, kind_of
from penstock.request import Request
from penstock.supervision import keep

log = logging.getLogger(__name__)

# The wait before each attempt. An engine that has worked restarts at once: its streams wait.
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
STOP_TIMEOUT_S = 3.0
# A process whose driver hangs may outlive SIGKILL. The next one starts without waiting longer.
KILL_TIMEOUT_S = 10.0
# The engine is looked at so many times within `hang_timeout`.
NUM_LOOKS = 10
# After so many failed requests in a row the engine must show that it can still generate.
MAX_ERRORS = 3


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

    `on_spawn` is called with the id of each new process before it loads the model. The process is
    killed if the engine itself gives no sign of life for `hang_timeout` seconds (no request gets
    on, and no probe is answered), or if it does not let go of a cancelled request for so long.
    `on_stopped` is called with the number of seconds that it took to let go of one. `deliver`
    delivers the batches of the engine; by default every sink is called for itself. `pace` holds the
    tokens of each request back to so many per second (see `pace.py`); 0 holds nothing back.
    """

    def __init__(
        self,
        target: str,
        options: dict[str, Any],
        on_spawn: Callable[[int], None] = lambda pid: None,
        hang_timeout: float = 300.0,
        on_stopped: Callable[[float], None] = lambda seconds: None,
        deliver: Deliver | None = None,
        pace: float = 0.0,
    ) -> None:
        self._start_message = messages.Start(target, options, pace)
        self._on_spawn = on_spawn
        self._hang_timeout = hang_timeout
        self._on_stopped = on_stopped
        self._deliver = deliver or deliver_singly
        self._stopping: dict[str, tuple[str, float]] = {}
        """For each cancelled request that the engine still works on: its `Request.model`, and when
        it was cancelled, on the monotonic clock."""
        self._sinks: dict[str, LosableSink] = {}
        self._folder: folders.ServerFolder | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._started: asyncio.Future[ModelInfo] | None = None
        self._last_words = LastWords()
        self._drain: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._is_heard = True
        """True if the engine has given a sign of life since the last look."""
        self._num_idle_facts = 0
        """How many messages came that the engine's process can send while the engine hangs."""
        self._is_paused = False
        """True while the engine takes no new requests."""
        self._is_probing = False
        self._must_generate = False
        """True if the probe under way asks for a token."""
        self._num_errors = 0
        """How many requests have failed in a row."""
        self._num_failed_starts = 0
        self._has_worked = False
        """True once the process has accepted a request: then its death is no failed start."""
        self.state: EngineState = "loading"
        self.info: ModelInfo | None = None
        self.num_restarts = 0
        self.on_room: Callable[[], None] = lambda: None
        self.on_info: Callable[[ModelInfo], None] = lambda info: None
        self._upstreams = UpstreamCounts()

    @property
    def pid(self) -> int | None:
        """The id of the engine's process, or None if there is no process."""
        return self._process.pid if self._process is not None else None

    @property
    def num_requests(self) -> int:
        """The number of requests that the engine has not ended, without cancelled requests."""
        return len(self._sinks)

    @property
    def num_stopping(self) -> int:
        """The number of cancelled requests that the engine has not let go of yet."""
        return len(self._stopping)

    def num_stopping_of(self, model: str) -> int:
        """Return how many cancelled requests for a model (`ModelInfo.id`) the engine still runs."""
        default = "" if self.info is None else self.info.id
        return sum((name or default) == model for name, _ in self._stopping.values())

    @property
    def upstreams(self) -> tuple[UpstreamState, ...]:
        """The servers that answer for the engine, counted over all its processes."""
        return self._upstreams.states

    @property
    def is_congested(self) -> bool:
        """Return True while the engine's process does not read what it was sent, or asks for no
        new requests."""
        if self._is_paused:
            return True
        return self._channel is not None and self._channel.is_congested

    async def start(self) -> ModelInfo:
        """Start the process and load the model. Raises StartError if the model cannot be loaded."""
        folders.remove_left_behind()
        try:
            self.info = await self._spawn()
        except BaseException:
            self._remove_folder()
            raise
        self._tasks = [keep("supervisor", self._supervise), keep("engine watch", self._watch)]
        return self.info

    async def stop(self) -> None:
        """End the process and drop every request."""
        self.state = "stopped"
        self._ready.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_process()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    async def until_ready(self) -> None:
        """Wait until requests can be submitted."""
        await self._ready.wait()

    def submit(self, request: Request, sink: LosableSink) -> None:
        """Send a request to the engine. Raises EngineUnavailable unless `state` is "ready"."""
        if self.state != "ready" or self._channel is None:
            raise EngineUnavailable(*_UNAVAILABLE[self.state], headers={"Retry-After": "1"})
        self._sinks[request.id] = sink
        self._channel.send(messages.Submit(request))

    def cancel(self, request_id: str, model: str = "") -> None:
        """Stop a request for `model`; its sink is told nothing more.

        `model` is `Request.model`. Unknown and ended ids are ignored.
        """
        if self._sinks.pop(request_id, None) is not None and self._channel is not None:
            self._stopping[request_id] = (model, time.monotonic())
            self._channel.send(messages.Cancel(request_id))

    def _receive(self, batch: list[messages.FromEngine]) -> None:
        num_idle_facts = self._num_idle_facts
        self._deliver(batch, self._sinks, self._tell)
        if self._num_idle_facts - num_idle_facts < len(batch):
            self._is_heard = True
            self._num_errors = 0

    def _tell(self, message: messages.Fact) -> None:
        match message:
            case messages.Finish(request_id, reason, completion_tokens):
                if sink := self._sinks.pop(request_id, None):
                    sink.finish(reason, completion_tokens)
            case messages.Fail(request_id, code, text):
                self._num_idle_facts += 1
                if kind_of(code).status == 500:
                    self._num_errors += 1
                    self._probe()
                if sink := self._sinks.pop(request_id, None):
                    sink.fail(code, text)
            case messages.Accepted(request_id, prompt_ids, notes):
                self._num_idle_facts += 1
                self._has_worked = True
                if sink := self._sinks.get(request_id):
                    sink.accepted(prompt_ids, notes)
            case messages.Started(request_id):
                self._num_idle_facts += 1
                if sink := self._sinks.get(request_id):
                    sink.started()
            case messages.Cached(request_id, num_tokens, prompt_tokens):
                if sink := self._sinks.get(request_id):
                    sink.cached(num_tokens, prompt_tokens)
            case messages.Prompt(request_id, logprobs):
                if sink := self._sinks.get(request_id):
                    sink.prompt_logprobs(logprobs)
            case messages.Reasoning(request_id, text, num_tokens, token_ids):
                if sink := self._sinks.get(request_id):
                    sink.reasoning(text, num_tokens, token_ids)
            case messages.ToolCall(request_id, number, call_id, name, arguments, num_tokens):
                if sink := self._sinks.get(request_id):
                    sink.tool_call(number, call_id, name, arguments, num_tokens)
            case messages.Stopped(request_id):
                self._num_idle_facts += 1
                if stopping := self._stopping.pop(request_id, None):
                    _, began = stopping
                    self._on_stopped(time.monotonic() - began)
                    self.on_room()
            case messages.Alive():
                self._num_idle_facts += 1  # a probe says nothing about requests that fail
                self._is_heard = True
                self._probed()
            case messages.Interrupted(request_id, waits):
                self._num_idle_facts += 1
                if sink := self._sinks.get(request_id):
                    sink.interrupted(waits=waits)
            case messages.Working(request_id, num_read):
                if sink := self._sinks.get(request_id):
                    sink.working(num_read)
            case messages.Paused(is_paused):
                self._num_idle_facts += 1
                self._is_paused = is_paused
                if not is_paused:
                    self.on_room()
            case messages.Notice(level, text):
                self._num_idle_facts += 1
                log.log(level, "%s", text)
            case messages.Ready(info):
                assert self._started is not None
                self._started.set_result(info)
            case messages.Described(info):
                self._num_idle_facts += 1
                self.info = info
                self.on_info(info)
                self.on_room()
            case messages.Upstreams(states):
                self._num_idle_facts += 1
                self._upstreams.note(states)
            case messages.NotStarted(text, hint):
                assert self._started is not None
                self._started.set_exception(StartError(text, hint))
            case _:
                assert_never(message)

    async def _spawn(self) -> ModelInfo:
        loop = asyncio.get_running_loop()
        if self._folder is None:
            self._folder = folders.ServerFolder()
        folder = self._folder.new()
        ours, theirs = socket.socketpair()
        self._last_words = LastWords()
        self._has_worked = self._is_paused = False
        self._started = loop.create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "penstock.engine.process.worker", str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, folders.VARIABLE: str(folder)},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # its own group: killed as a whole, no Ctrl-C
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = Channel(self._receive, lambda: self.on_room())
        await loop.create_connection(lambda: channel, sock=ours)
        self._channel = channel
        self._on_spawn(self._process.pid)
        channel.send(self._start_message)
        assert self._process.stderr is not None
        read = functools.partial(self._last_words.read, self._process.stderr)
        drain = self._drain = keep("engine stderr", read, is_essential=False)
        ended = asyncio.create_task(self._until_it_ends())
        try:
            await asyncio.wait((self._started, ended), return_when=asyncio.FIRST_COMPLETED)
            if not self._started.done():
                await channel.read_to_end()
            if not self._started.done():
                await asyncio.wait({drain}, timeout=STOP_TIMEOUT_S)
                how = self._cause_of_death()
                raise StartError(
                    f"The engine's process ended while loading ({how}).",
                    "Is there enough memory for the model?",
                )
            try:
                info = self._started.result()
            except StartError as error:
                # The process ends by itself; its first error is the cause.
                await asyncio.wait({drain}, timeout=STOP_TIMEOUT_S)
                reason = self._last_words.first_error()
                raise StartError(f"{error} {reason}".strip(), error.hint) from None
        except BaseException:
            await self._end_process()
            raise
        finally:
            ended.cancel()
        self._is_heard, self._is_probing, self._num_errors = True, False, 0
        self.state = "ready"
        self._ready.set()
        self._last_words.forget()  # an error while loading would not explain a later death
        return info

    async def _supervise(self) -> None:
        """Restart the process and tell the sinks whenever it dies, until cancelled.

        This may begin anew at any point: it looks only at what is there.
        """
        while True:
            if self._process is not None:
                await self._until_it_ends()
                self.state = "down"
                self._ready.clear()
                if self._channel is not None:
                    await self._channel.read_to_end()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
                how = self._cause_of_death()
                log.error("the engine's process ended (%s); restarting it", how)
                await self._end_process()
            self._lose_requests()
            await self._restart()
            self.num_restarts += 1
            log.warning("the engine is ready again")
            self.on_room()

    async def _until_it_ends(self) -> None:
        """Wait until the process has ended, or cannot be talked to any more."""
        process, channel = self._process, self._channel
        if process is None or channel is None:
            return
        ends = [asyncio.create_task(each) for each in (process.wait(), channel.lost.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    def _lose_requests(self) -> None:
        sinks, self._sinks = self._sinks, {}
        self._stopping.clear()
        for sink in sinks.values():
            try:
                sink.lost()
            except Exception:  # a bug with one request must not reach the others
                log.exception("a lost request could not be handled")

    async def _restart(self) -> None:
        """Start a process, waiting longer before each attempt the more attempts have failed."""
        self._num_failed_starts = 0 if self._has_worked else self._num_failed_starts + 1
        while True:
            number = self._num_failed_starts
            await asyncio.sleep(RESTART_DELAYS_S[min(number, len(RESTART_DELAYS_S) - 1)])
            try:
                self._upstreams.begin_anew()
                self.info = await self._spawn()
                self.on_info(self.info)
            except Exception as error:  # no memory, no disk, no process: it may pass
                self._num_failed_starts += 1
                text = str(error) if isinstance(error, StartError | OSError) else ""
                log.error(
                    "the engine did not come back (attempt %d): %s",
                    number + 1,
                    text or type(error).__name__,
                )
            else:
                return

    async def _watch(self) -> None:
        """Look `NUM_LOOKS` times within `hang_timeout` whether the engine has given a sign of life;
        kill the process if it has given none, until cancelled.

        Looks are counted, not seconds: if this process itself stands still, only one look passes.
        """
        num_silent = num_stuck = 0
        oldest = ""
        period = self._hang_timeout / NUM_LOOKS
        while True:
            await asyncio.sleep(period)
            was_silent = num_silent > 0
            num_silent = 0 if self._is_heard or self.state != "ready" else num_silent + 1
            if num_silent or (was_silent and self.state == "ready"):
                self._tell_silence(num_silent * period)
            self._is_heard = False
            before, oldest = oldest, next(iter(self._stopping), "")
            num_stuck = num_stuck + 1 if oldest and oldest == before else 0
            if num_silent >= NUM_LOOKS - 1:
                self._kill_sick("the engine has been silent for %g s; killing it")
                num_silent = 0
            elif num_stuck >= NUM_LOOKS:
                self._kill_sick("the engine works on a cancelled request after %g s; killing it")
                num_stuck = 0
            else:
                self._probe()

    def _tell_silence(self, seconds: float) -> None:
        for sink in list(self._sinks.values()):
            try:
                sink.silent(seconds, self._hang_timeout)
            except Exception:  # a bug with one request must not reach the others
                log.exception("a request could not be told that the engine is silent")

    def _kill_sick(self, why: str) -> None:
        if self._process is not None:
            log.error(why, self._hang_timeout)
            self._kill(self._process.pid)

    def _probe(self) -> None:
        """Have the engine show that it is alive, unless a probe is under way."""
        if self.state == "ready" and self._channel is not None and not self._is_probing:
            self._is_probing = True
            self._must_generate = self._num_errors >= MAX_ERRORS
            self._channel.send(messages.Probe(self._must_generate))

    def _probed(self) -> None:
        """Note the answer to a probe."""
        self._is_probing = False
        if self._must_generate:
            self._num_errors = 0  # the requests are at fault, not the engine
        elif self._num_errors >= MAX_ERRORS:
            self._probe()

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
            self._kill(process.pid)  # the engine may have started processes, which outlive it
            self._process = None
        try:
            await asyncio.wait_for(process.wait(), KILL_TIMEOUT_S)
        except TimeoutError:
            log.error("the engine's process %d outlives its kill", process.pid)
        if self._folder is not None:
            self._folder.clear()

    @staticmethod
    def _kill(group: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)

    def _cause_of_death(self) -> str:
        """Return the exit status and the first error that the process wrote."""
        how = manner_of(None if self._process is None else self._process.returncode)
        return f"{how}. {self._last_words.first_error()}".strip(". ")


_UNAVAILABLE = {
    "loading": ("engine_loading", "The model is still loading. Try again in a moment."),
    "down": ("engine_down", "The engine stopped and is being restarted. Try again in a moment."),
    "stopped": ("draining", "The server is shutting down."),
}
