"""The engine's process: loads one engine and relays messages between it and the server.

In: `Start`, then `Submit`s, `Cancel`s and `Probe`s, on the socket whose descriptor is the first
argument. Out: `Ready` or `NotStarted`, then batches of the calls that the sinks received. Not known
here: which engine runs.
"""

import asyncio
import contextlib
import gc
import importlib
import inspect
import logging
import os
import socket
import sys
from functools import partial
from typing import cast, get_type_hints

import msgspec
import uvloop
from setproctitle import setproctitle

from penstock.children import die_with_parent, leave_signals_to_parent
from penstock.engine.process import messages
from penstock.engine.process.pace import Pacer
from penstock.engine.protocol import (
    ChangingEngine,
    Engine,
    EngineFinish,
    PausingEngine,
    ReportingEngine,
)
from penstock.engine.tasks import end_process
from penstock.errors import StartError
from penstock.events import PromptLogprobs, TokenLogprob
from penstock.request import Request

MAX_NOTICE_CHARACTERS = 4000


class Outbox(asyncio.Protocol):
    """The engine's end of the socket: sends the messages of one event loop turn as one frame."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._pending: list[messages.FromEngine] = []
        self._deframer = messages.Deframer()
        self._decoder = messages.to_engine_decoder()
        self._loop = asyncio.get_running_loop()
        self.inbox: asyncio.Queue[messages.ToEngine | None] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base class

    def data_received(self, data: bytes) -> None:
        for body in self._deframer.feed(data):
            for message in self._decoder.decode(body):
                self.inbox.put_nowait(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.inbox.put_nowait(None)

    def push(self, message: messages.FromEngine) -> None:
        """Send `message` in one frame with all others of this turn of the event loop."""
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending.append(message)

    def flush(self) -> None:
        """Send the pending messages now."""
        if self._pending and self._transport is not None:
            self._transport.write(messages.frame(self._pending))
        self._pending = []


class MessageSink:
    """A request's sink in the engine's process: turns each call into a message."""

    __slots__ = ("_id", "_push")

    def __init__(self, request_id: str, outbox: Outbox) -> None:
        self._id = request_id
        self._push = outbox.push

    def accepted(self, prompt_ids: tuple[int, ...], notes: tuple[str, ...] = ()) -> None:
        self._push(messages.Accepted(self._id, prompt_ids, notes))

    def started(self) -> None:
        self._push(messages.Started(self._id))

    def working(self, num_read: int = 0) -> None:
        self._push(messages.Working(self._id, num_read))

    def interrupted(self, *, waits: bool) -> None:
        self._push(messages.Interrupted(self._id, waits))

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        self._push(messages.Cached(self._id, num_tokens, prompt_tokens))

    def prompt_logprobs(self, logprobs: PromptLogprobs) -> None:
        self._push(messages.Prompt(self._id, logprobs))

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        self._push(messages.Delta(self._id, piece, num_tokens, token_ids, logprobs))

    def reasoning(self, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        self._push(messages.Reasoning(self._id, text, num_tokens, token_ids))

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        self._push(messages.ToolCall(self._id, number, call_id, name, arguments, num_tokens))

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        self._push(messages.Finish(self._id, reason, completion_tokens))

    def fail(self, code: str, message: str) -> None:
        self._push(messages.Fail(self._id, code, message))


class _Forwarder(logging.Handler):
    """Sends the lines of an engine's log to the server, each in a bounded message."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(logging.INFO)
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line, from any thread."""
        notice = messages.Notice(record.levelno, self.format(record)[:MAX_NOTICE_CHARACTERS])
        self._loop.call_soon_threadsafe(self._outbox.push, notice)


def forward_log(outbox: Outbox) -> None:
    """Send what engines log to the server, which has the log."""
    log = logging.getLogger("penstock.engine")
    log.addHandler(_Forwarder(outbox))
    log.setLevel(logging.INFO)


def load(target: str, options: dict[str, object]) -> Engine:
    """Import the class `target` ("module:Class") and construct the engine.

    Raises StartError if the class cannot be imported or does not take `options`.
    """
    module_name, _, class_name = target.partition(":")
    try:
        engine_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise StartError(
            f"The engine {target} cannot be imported: {error}.",
            "Name an installed engine: see `penstock serve --help`.",
        ) from error
    signature = inspect.signature(engine_class)
    try:
        signature.bind(**options)
    except TypeError as error:
        unknown = [repr(name) for name in options if name not in signature.parameters]
        raise StartError(
            f"The engine has no parameter {', '.join(unknown)}."
            if unknown
            else f"The engine cannot be made with these parameters: {error}.",
            "It takes: " + ", ".join(signature.parameters),
        ) from error
    check_values(engine_class, options)
    engine: Engine = engine_class(**options)
    return engine


def check_values(engine_class: type[Engine], options: dict[str, object]) -> None:
    """Raise StartError if a value does not match the annotation of its constructor argument.

    Only annotations that msgspec understands are checked.
    """
    try:
        kinds = get_type_hints(engine_class.__init__, include_extras=True)
    except NameError:  # a name that only type checkers import
        return
    for name, value in options.items():
        try:
            msgspec.convert(value, kinds.get(name, object))
        except msgspec.ValidationError as error:
            raise StartError(
                f"The engine does not take this value for {name!r}: {error}.",
                f"Give another value: --engine-arg {name}=VALUE",
            ) from None
        except TypeError:  # msgspec does not know this annotation
            continue


async def relay(outbox: Outbox) -> None:
    """Start the engine that the first message names; serve until the server closes the socket."""
    message = await outbox.inbox.get()
    if not isinstance(message, messages.Start):
        return
    try:
        forward_log(outbox)
        engine = load(message.target, message.options)
        if isinstance(engine, PausingEngine):
            engine.on_pause = lambda is_paused: outbox.push(messages.Paused(is_paused))
        if isinstance(engine, ChangingEngine):
            engine.on_info = lambda info: outbox.push(messages.Described(info))
        if isinstance(engine, ReportingEngine):
            engine.on_upstreams = lambda states: outbox.push(messages.Upstreams(states))
        info = await engine.start()
        leave_signals_to_parent()  # again, because llama.cpp installs its own handlers
    except StartError as error:
        outbox.push(messages.NotStarted(str(error), error.hint))
        outbox.flush()
        return
    gc.collect()
    gc.freeze()  # garbage collection skips the model and the modules
    outbox.push(messages.Ready(info))
    pacer = Pacer(message.pace)
    probe: asyncio.Task[None] | None = None
    try:
        while (message := await outbox.inbox.get()) is not None:
            if isinstance(message, messages.Submit):
                request: Request = message.request
                sink = MessageSink(request.id, outbox)
                engine.submit(request, pacer.paced(request.id, sink))
            elif isinstance(message, messages.Cancel):
                pacer.drop(message.request_id)
                stopped = messages.Stopped(message.request_id)
                engine.cancel(message.request_id, partial(outbox.push, stopped))
            elif isinstance(message, messages.Probe):
                probe = asyncio.create_task(answer(engine, message, outbox))
    finally:
        if probe is not None:
            probe.cancel()
        await engine.stop()


async def answer(engine: Engine, probe: messages.Probe, outbox: Outbox) -> None:
    """Tell the server that the engine answers; end the process if it cannot."""
    try:
        await engine.check(tries=probe.tries)
    except Exception as error:  # engines raise any type
        end_process(f"the engine does not answer ({type(error).__name__})")
    outbox.push(messages.Alive())


async def _main(server_socket: socket.socket) -> None:
    _, outbox = await asyncio.get_running_loop().create_connection(Outbox, sock=server_socket)
    with contextlib.suppress(asyncio.CancelledError):
        await relay(outbox)


def main() -> None:
    """Run `python -m penstock.engine.process.worker FD PARENT_PID`."""
    descriptor, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent_pid)
    setproctitle("penstock: engine")
    leave_signals_to_parent()
    uvloop.run(_main(socket.socket(fileno=descriptor)))
    # Engines leave native threads behind: exit without waiting for them.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
