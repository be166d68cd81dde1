"""The mock engine: a fixed text, word by word, at a fixed pace. Only ever used when asked for.

For client developers, load tests and our own tests. Each word is one token, whose id is its index.
Deterministic: the prompt changes nothing but its own count. It can be told to misbehave at a given
token, as real engines do.
"""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from itertools import count, cycle, islice
from typing import Annotated

from msgspec import Meta

from penstock.engine.protocol import ModelInfo, Sink, refusal
from penstock.engine.slots import Slots
from penstock.errors import StartError
from penstock.request import Request

TEXT = (
    " Water comes down from the hills, slowly at first, then all at once. A gate opens, and the"
    " whole weight of the lake leans into one long pipe. Nothing is lost on the way: what goes in"
    " at the top comes out at the bottom, in the same order, as fast as the wheel can take it."
)

Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class Mock:
    """Says `text` (its own by default), a word every `interval` seconds.

    `length`: tokens after which it stops by itself; 0 means the text once; a longer one repeats
    the text. `numbered`: say instead which token of which request it is, as the first word of the
    prompt and the index ("lake:0 lake:1 "), so that a reader can tell what it should have got.
    `prefill`: seconds before the first token. `fail_at`, `hang_at`, `die_at`: the index
    of the token (from 0) instead of which the request fails, nothing ever comes again, or the
    process is killed; -1 means never. `slots`: requests at once, 0 for no bound.
    """

    def __init__(
        self,
        *,
        name: str = "mock",
        interval: Seconds = 0.3,
        text: str = TEXT,
        length: Count = 0,
        prefill: Seconds = 0.0,
        context_length: Annotated[int, Meta(ge=1)] = 8192,
        slots: Count = 0,
        numbered: bool = False,
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
        self._numbered = numbered
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
        prompt = split_words(prompt_text(request))
        prompt_tokens = len(prompt)
        if refused := refusal(request, prompt_tokens, self._info.context_length):
            sink.fail(*refused)
            return
        sink.accepted(tuple(range(prompt_tokens)))
        first = len(request.generated)
        end = min(first + request.max_tokens, self._info.context_length - prompt_tokens)
        words: Iterator[str] = cycle(self._words)
        if self._numbered:
            name = prompt[0].strip() if prompt else ""
            words = (f"{name}:{index} " for index in count())

        def begin() -> None:
            sink.started()
            task = asyncio.create_task(self._speak(words, first, end, sink))
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

    async def _speak(self, words: Iterator[str], first: int, end: int, sink: Sink) -> None:
        """Say the words from index `first` to before `end`, or until the text is over."""
        if self._prefill:
            await asyncio.sleep(self._prefill)
        last = max(first, min(end, self._length))
        for index, word in enumerate(islice(words, first, last), first):
            await asyncio.sleep(self._interval)
            if index == self._fail_at:
                sink.fail("mock_failure", "The mock engine was told to fail at this token.")
                return
            if index == self._hang_at:
                await asyncio.Event().wait()
            if index == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            sink.delta(word, 1, (index,))
        sink.finish("stop" if self._length <= end else "length", last - first)


def split_words(text: str) -> list[str]:
    """The mock's tokens: words with the space before them, so that joining gives `text` back."""
    return re.findall(r"\s*\S+|\s+$", text)


def prompt_text(request: Request) -> str:
    """What the mock counts: the prompt, or all that was said."""
    if request.prompt is not None:
        return request.prompt
    if request.messages is None:
        return " ".join(map(str, request.prompt_ids or ()))
    return " ".join(message.content for message in request.messages or ())
