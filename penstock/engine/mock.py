"""The mock engine: repeats a fixed text, word by word, at a fixed pace.

It is for client developers, load tests and our own tests, and never replaces another engine. Each
word is one token, whose id is its index. The answer is always the same: a prompt changes only the
count of its tokens. The engine can fail, hang or die at a given token, as real engines do.
"""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from itertools import count, cycle, islice
from typing import Annotated

from msgspec import Meta

from penstock.engine.protocol import Feature, ModelInfo, Sink
from penstock.engine.tasks import TaskEngine, refusal
from penstock.errors import StartError
from penstock.request import Request

TEXT = (
    " Water comes down from the hills, slowly at first, then all at once. A gate opens, and the"
    " whole weight of the lake leans into one long pipe. Nothing is lost on the way: what goes in"
    " at the top comes out at the bottom, in the same order, as fast as the wheel can take it."
)

SUPPORTS: tuple[Feature, ...] = (
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "use_cache",
    "return_token_ids",
)

Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class Mock(TaskEngine):
    """Answers every request with `text`, one word every `interval` seconds.

    `length` is the number of tokens after which the answer stops by itself, repeating the text if
    it is longer; 0 means the text once. With `numbered` each token is instead the first word of
    the prompt and the token's index ("lake:0 lake:1 "), so that a reader can verify what it
    received. `prefill` is the number of seconds before the first token. At the token with the index
    (from 0) `fail_at` the request fails, at `hang_at` nothing comes any more, and at `die_at` the
    process is killed; -1 means never. With `die_after` the process is killed at the token with that
    index of every part of an answer: it gets further after each death. Only a request whose prompt
    contains `fatal` can kill the process. `slots` requests run at once; 0 means no bound. A
    cancelled request has its slot for `stopping` more seconds, as in engines that finish a step.

    `ignore_eos` and `min_tokens` of a request make the answer longer than `length`, and a token of
    its `stop_token_ids` ends it. There is nothing to sample.
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
        die_after: int = -1,
        fatal: str = "",
        stopping: Seconds = 0.0,
    ) -> None:
        super().__init__(slots)
        self._words = split_words(text)
        if not self._words:
            raise StartError("The mock engine's text is empty.", "Give it at least one word.")
        self._info = ModelInfo(
            name, "mock", context_length, slots, SUPPORTS, cache_tokens=context_length * slots
        )
        self._length = length or len(self._words)
        self._interval = interval
        self._prefill = prefill
        self._numbered = numbered
        self._fail_at, self._hang_at, self._die_at = fail_at, hang_at, die_at
        self._die_after, self._fatal = die_after, fatal
        self._stopping = stopping
        self._hanging: set[asyncio.Future[None]] = set()

    async def start(self) -> ModelInfo:
        """Return at once: there is nothing to load."""
        return self._info

    async def check(self, *, tries: bool) -> None:
        """Return as soon as no request hangs."""
        while self._hanging:
            await asyncio.wait(self._hanging)

    async def _run(self, request: Request, sink: Sink) -> None:
        prompt = split_words(prompt_text(request))
        prompt_tokens = len(prompt)
        context_length = self._info.context_length
        if refused := refusal(request, prompt_tokens, context_length, takes_empty=True):
            sink.fail(*refused)
            return
        sink.accepted(tuple(range(prompt_tokens)))
        first = len(request.generated)
        end = min(first + request.max_tokens, context_length - prompt_tokens)
        words: Iterator[str] = cycle(self._words)
        if self._numbered:
            name = prompt[0].strip() if prompt else ""
            words = (f"{name}:{index} " for index in count())
        if not await self._start(request, sink):
            return
        try:
            await self._speak(request, words, end, sink)
        except asyncio.CancelledError:
            await asyncio.sleep(self._stopping)
            raise

    async def _speak(self, request: Request, words: Iterator[str], end: int, sink: Sink) -> None:
        """Push the words from the first that is not generated yet up to `end` or the text's end."""
        first = len(request.generated)
        least = first + request.min_tokens
        length = end + 1 if request.ignore_eos else max(self._length, least)
        if self._prefill:
            await asyncio.sleep(self._prefill)
        last = max(first, min(end, length))
        is_fatal = self._fatal in prompt_text(request)
        deadly = (self._die_at, first + self._die_after if self._die_after >= 0 else -1)
        for index, word in enumerate(islice(words, first, last), first):
            await asyncio.sleep(self._interval)
            if index == self._fail_at:
                sink.fail("mock_failure", "The mock engine was told to fail at this token.")
                return
            if index == self._hang_at:
                await self._hang()
            if index in deadly and is_fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            if index >= least and index in request.stop_token_ids:
                sink.delta("", 1, (index,))
                sink.finish("stop", index + 1 - first)
                return
            sink.delta(word, 1, (index,))
        sink.finish("stop" if length <= end else "length", last - first)

    async def _hang(self) -> None:
        """Wait until the request is cancelled."""
        hanging: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hanging.add(hanging)
        try:
            await hanging
        finally:
            self._hanging.discard(hanging)


def split_words(text: str) -> list[str]:
    """Split `text` into the mock's tokens: words with the space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def prompt_text(request: Request) -> str:
    """Return the prompt's text, or the contents of all messages."""
    if request.prompt is not None:
        return request.prompt
    if request.messages is None:
        return " ".join(map(str, request.prompt_ids or ()))
    return " ".join(message.content for message in request.messages or ())
