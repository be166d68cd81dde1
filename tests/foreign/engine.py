"""An engine that shows what reached it: SDKs that say the same get the same answer.

It is the mock engine, with an answer that depends on the conversation. So a test can tell whether
an SDK's system prompt, its turns and its tools' results arrived.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence

import msgspec

from penstock.engine.mock import Mock, prompt_text, split_words
from penstock.engine.protocol import Sink
from penstock.request import Message, Request

HOLD = "hold"
INTERVAL_S = 0.005
HOLD_S = 1.0
"""Seconds between the tokens of an answer that is only there to take its place."""


class Telling(Mock):
    """Tells the conversation back ("I was told: system ... / user ...").

    If the last turn is not a tool's result, it calls the first of the request's tools. A turn
    `HOLD` gets an answer that takes two hours.
    """

    def __init__(self, *, name: str = "telling") -> None:
        super().__init__(name=name, interval=INTERVAL_S, context_length=8192)
        self._info = msgspec.structs.replace(
            self._info, supports=(*self._info.supports, "tools", "tools_with_schema", "json_schema")
        )

    async def _run(self, request: Request, sink: Sink) -> None:
        messages = request.messages or ()
        if not request.tools or messages[-1].role == "tool":
            await super()._run(request, sink)
            return
        sink.accepted(tuple(range(10)))
        if await self._start(request, sink):
            function = json.loads(request.tools)[0]["function"]
            sink.tool_call(0, f"call_{request.id}", function["name"], "", 1)
            for piece in ('{"city": ', '"Bonn"}'):
                sink.tool_call(0, "", "", piece, 1)
            sink.finish("stop", 3)

    async def _speak(self, request: Request, words: Iterator[str], end: int, sink: Sink) -> None:
        messages = request.messages or ()
        if any(message.content == HOLD for message in messages):
            await _hold(end, sink)
            return
        told = split_words(telling(messages or (Message("user", prompt_text(request)),)))
        self._length = len(told)
        await super()._speak(request, iter(told), end, sink)


async def _hold(num_tokens: int, sink: Sink) -> None:
    for index in range(num_tokens):
        await asyncio.sleep(HOLD_S)
        sink.delta(" held", 1, (index,))
    sink.finish("length", num_tokens)


def telling(messages: Sequence[Message]) -> str:
    """Return the answer to a conversation."""
    turns = [f"{message.role} {message.content}".strip() for message in messages]
    return "I was told: " + " / ".join(turns)
