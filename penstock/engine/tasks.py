"""The life of a request inside an engine: a task, a place in the queue, a slot, an end.

In: requests and cancellations. Out: calls of an engine's `_run`, never more than its slots past
`_start`. Not known here: how the engine generates.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable

from penstock.engine.lengths import Lengths
from penstock.engine.protocol import Sink
from penstock.engine.slots import Slots
from penstock.request import Request

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
    for message in messages:
        size += len(message.content) + len(message.reasoning)
        size += sum(len(call.arguments) for call in message.tool_calls)
    return size <= SHORT_CHARACTERS


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
        task = asyncio.create_task(self._run(request, sink))
        self._tasks[request.id] = task
        task.add_done_callback(lambda _: self._forget(request.id))

    def cancel(self, request_id: str) -> None:
        """Cancel a request's task, which frees its slot or its place in the queue."""
        if task := self._tasks.get(request_id):
            task.cancel()

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

    def _forget(self, request_id: str) -> None:
        del self._tasks[request_id]
        self._slots.release(request_id)
