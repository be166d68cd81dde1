"""The life of a request inside an engine: a task, a place in the queue, a slot, an end.

In: requests and cancellations. Out: calls of an engine's `_run`, never more than its slots past
`_start`. A request has its slot until its task has ended: an engine that must wait until a
cancelled request has really stopped waits in that task. Not known here: how the engine generates.
"""

import asyncio
import contextlib
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NoReturn

from penstock.engine.lengths import Lengths
from penstock.engine.protocol import Sink
from penstock.engine.slots import Slots
from penstock.request import Request

log = logging.getLogger(__name__)

SHORT_CHARACTERS = 4096
SHORT_TURNS = 32


def refusal(
    request: Request, prompt_tokens: int, context_length: int, *, takes_empty: bool = False
) -> tuple[str, str] | None:
    """Return the code and the sentence that refuse a prompt of this length, or None if it fits.

    `takes_empty` says whether the model can answer a prompt without tokens.
    """
    if not prompt_tokens and not takes_empty:
        return "empty_prompt", "This model cannot answer an empty prompt. Send at least one word."
    room = context_length - prompt_tokens
    if room <= 0:
        return too_long(context_length, str(prompt_tokens))
    if request.must_fit and request.max_tokens > room:
        return (
            "answer_too_long",
            f"{_limit(context_length)} However, you requested {prompt_tokens + request.max_tokens}"
            f" tokens ({prompt_tokens} in the prompt, {request.max_tokens} in the answer). Shorten"
            f" the prompt, or ask for {room} tokens at most.",
        )
    return None


def too_long(context_length: int, prompt_tokens: str) -> tuple[str, str]:
    """Return the code and the sentence that refuse a prompt that cannot fit."""
    return (
        "prompt_too_long",
        f"{_limit(context_length)} However, your prompt has {prompt_tokens} tokens, which leaves no"
        " room for an answer. Shorten the prompt.",
    )


def _limit(context_length: int) -> str:
    # Programs recognise an overflow by this sentence of OpenAI's.
    return f"This model's maximum context length is {context_length} tokens."


def too_many_turns(request: Request, context_length: int) -> tuple[str, str] | None:
    """Return the code and the sentence that refuse a conversation before it is rendered.

    Every turn takes at least one token, and rendering takes long if there are many thousands.
    """
    num_turns = len(request.messages or ())
    if num_turns <= context_length or request.prompt_ids is not None:
        return None
    return (
        "prompt_too_long",
        f"{_limit(context_length)} However, your prompt has {num_turns} messages, and each has at"
        " least one token. Shorten the prompt.",
    )


class PromptTooLongError(Exception):
    """A prompt cannot fit into the context; the message is a sentence for the client."""


def check_length(texts: Iterable[str | int], lengths: Lengths, context_length: int) -> None:
    """Raise PromptTooLongError if a prompt of texts and tokens cannot fit into the context.

    Takes milliseconds, where tokenising takes seconds.
    """
    least = 0
    for text in texts:
        least += 1 if isinstance(text, int) else lengths.least(text, context_length - least)
        if least >= context_length:
            raise PromptTooLongError(too_long(context_length, f"at least {least}")[1])


def is_short(request: Request) -> bool:
    """Return True if it takes less time to prepare the prompt at once than in another thread."""
    messages = request.messages or ()
    if len(messages) > SHORT_TURNS:
        return False
    size = len(request.prompt or "") + len(request.tools or "") + len(request.template_kwargs or "")
    if request.gap is not None:
        size += sum(map(len, request.gap.texts()))
    for message in messages:
        size += len(message.content) + len(message.reasoning)
        size += sum(len(call.arguments) for call in message.tool_calls)
    return size <= SHORT_CHARACTERS


def end_process(reason: str) -> NoReturn:
    """End the engine's process, so that the server starts another and its requests go on there."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"EngineDeadError: {reason}.\n")
        sys.stderr.flush()
    os._exit(1)


class TaskEngine(ABC):
    """An engine that serves each request in an asyncio task, at most `num_slots` at once.

    A subclass writes `start` and `_run`; it has the other methods of `Engine`. `num_slots` 0 means
    no bound.
    """

    def __init__(self, num_slots: int) -> None:
        self._slots = Slots(num_slots)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def stop(self) -> None:
        """Cancel every request."""
        for task in self._tasks.values():
            task.cancel()

    def submit(self, request: Request, sink: Sink) -> None:
        """Serve a request in a new task."""
        task = asyncio.create_task(self._serve(request, sink, self._tasks.get(request.id)))
        self._tasks[request.id] = task
        task.add_done_callback(lambda task: self._forget(request.id, task))

    def cancel(self, request_id: str, stopped: Callable[[], None]) -> None:
        """Cancel a request's task; call `stopped` when it has ended, and with it the request."""
        task = self._tasks.get(request_id)
        if task is None:
            stopped()
            return
        task.add_done_callback(lambda _: stopped())
        task.cancel()

    async def check(self, *, tries: bool) -> None:  # noqa: B027 - a default
        """Return: this process itself is the engine."""

    async def _serve(self, request: Request, sink: Sink, before: asyncio.Task[None] | None) -> None:
        if before is not None:  # a continuation may come while its first part is put away
            await asyncio.wait({before})
        try:
            await self._run(request, sink)
        except Exception:
            log.exception("the engine has a bug")
            sink.fail("engine_error", "The engine failed the request.")

    @abstractmethod
    async def _run(self, request: Request, sink: Sink) -> None:
        """Serve one request to its end, with `_start` between `accepted` and the first delta."""

    async def _start(self, request: Request, sink: Sink) -> bool:
        """Wait for a slot and tell `sink` that the request has started.

        Return False if the request has ended: `sink` was told that it asks for no token, or that
        the queue is full.
        """
        if not request.max_tokens:
            sink.finish("length", 0)
            return False
        has_slot = asyncio.Event()
        if not self._slots.acquire(request.id, has_slot.set):
            sink.fail("queue_full", "Too many requests are waiting. Try again later.")
            return False
        await has_slot.wait()
        sink.started()
        return True

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(request_id) is task:
            del self._tasks[request_id]
        self._slots.release(request_id)
