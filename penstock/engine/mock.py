"""The mock engine: a fixed text, word by word, at a fixed pace. Only ever used when asked for.

For client developers, load tests and our own tests. Each word is one token. Deterministic: the
prompt changes nothing but its own count. It can be told to misbehave at a given token, as real
engines do.
"""

import asyncio
import os
import re
import signal
from itertools import cycle, islice

from penstock.engine.protocol import ModelInfo, Sink
from penstock.engine.slots import Slots
from penstock.errors import StartError
from penstock.request import Request

TEXT = (
    " Water comes down from the hills, slowly at first, then all at once. A gate opens, and the"
    " whole weight of the lake leans into one long pipe. Nothing is lost on the way: what goes in"
    " at the top comes out at the bottom, in the same order, as fast as the wheel can take it."
)


class Mock:
    """Says `text` (its own by default), a word every `interval` seconds.

    `length`: tokens after which it stops by itself; 0 means the text once; a longer one repeats
    the text. `prefill`: seconds before the first token. `fail_at`, `hang_at`, `die_at`: the index
    of the token (from 0) instead of which the request fails, nothing ever comes again, or the
    process is killed; -1 means never. `slots`: requests at once, 0 for no bound.
    """

    def __init__(
        self,
        *,
        name: str = "mock",
        interval: float = 0.3,
        text: str = TEXT,
        length: int = 0,
        prefill: float = 0.0,
        context_length: int = 8192,
        slots: int = 0,
        fail_at: int = -1,
        hang_at: int = -1,
        die_at: int = -1,
    ) -> None:
        self._words = split_words(text)
        if not self._words:
            raise StartError("The mock engine's text is empty.", "Give it at least one word.")
        self._info = ModelInfo(name, "mock", context_length, slots)
        self._length = length or len(self._words)
        self._interval = interval
        self._prefill = prefill
        self._fail_at, self._hang_at, self._die_at = fail_at, hang_at, die_at
        self._slots = Slots(slots)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> ModelInfo:
        """Nothing to load."""
        return self._info

    async def stop(self) -> None:
        """Ends every request without a word."""
        for task in self._tasks.values():
            task.cancel()

    def submit(self, request: Request, sink: Sink) -> None:
        """Counts the prompt's words and waits for a slot."""
        prompt_tokens = len(split_words(prompt_text(request)))
        if prompt_tokens >= self._info.context_length:
            sink.fail(
                "prompt_too_long",
                f"The prompt has {prompt_tokens} tokens; the model's context of"
                f" {self._info.context_length} leaves no room for an answer. Shorten the prompt.",
            )
            return
        sink.accepted(prompt_tokens)
        limit = min(request.max_tokens, self._info.context_length - prompt_tokens)

        def begin() -> None:
            sink.started()
            task = asyncio.create_task(self._speak(limit, sink))
            self._tasks[request.id] = task
            task.add_done_callback(lambda _: self._ended(request.id))

        if not self._slots.acquire(request.id, begin):
            sink.fail("queue_full", "Too many requests are waiting. Try again later.")

    def cancel(self, request_id: str) -> None:
        """Frees the slot at once, or leaves the line."""
        if task := self._tasks.get(request_id):
            task.cancel()
        else:
            self._slots.release(request_id)

    def _ended(self, request_id: str) -> None:
        del self._tasks[request_id]
        self._slots.release(request_id)

    async def _speak(self, limit: int, sink: Sink) -> None:
        if self._prefill:
            await asyncio.sleep(self._prefill)
        num_tokens = min(limit, self._length)
        for index, word in enumerate(islice(cycle(self._words), num_tokens)):
            await asyncio.sleep(self._interval)
            if index == self._fail_at:
                sink.fail("mock_failure", "The mock engine was told to fail at this token.")
                return
            if index == self._hang_at:
                await asyncio.Event().wait()
            if index == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            sink.delta(word, 1, (index,))
        sink.finish("stop" if self._length <= limit else "length", num_tokens)


def split_words(text: str) -> list[str]:
    """The mock's tokens: words with the space before them, so that joining gives `text` back."""
    return re.findall(r"\s*\S+|\s+$", text)


def prompt_text(request: Request) -> str:
    """What the mock counts: the prompt, or all that was said."""
    if request.prompt is not None:
        return request.prompt
    return " ".join(message.content for message in request.messages or ())
