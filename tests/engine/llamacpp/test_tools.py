"""Continuations of answers that call tools in Penstock's own form, in the test's own process."""

import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.hub import find_model
from penstock.request import Message
from tests.engine.test_conformance import ask
from tests.support.calling import BOTH, ZONES
from tests.support.in_process import stop
from tests.support.recording import RecordingSink

FIELDS: dict[str, Any] = {
    "prompt": None,
    "messages": (Message("user", "What time is it?"),),
    "tools": json.dumps(BOTH[1:]),
    "separate_reasoning": True,
    "parallel_calls": False,
}


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[LlamaCpp]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    engine = LlamaCpp(model=str(find_model("rill")), name="rill", slots=1)
    await engine.start()
    for number, handler in handlers.items():  # llama.cpp has replaced them
        signal.signal(number, handler)
    yield engine
    await stop(engine)


async def answer(engine: LlamaCpp, name: str, max_tokens: int = 60, **more: Any) -> RecordingSink:
    sink = RecordingSink()
    engine.submit(ask(name, max_tokens, **FIELDS, **more), sink)
    return await sink.end()


async def test_an_answer_that_called_nothing_yet_continues_with_a_call(engine: LlamaCpp) -> None:
    whole = await answer(engine, "a", 1)
    for name, text in (("b", "Let me see."), ("c", "Let me see.<tool_call>"), ("d", "")):
        ids = engine._vocabulary.ids_of(text)
        rest = await answer(
            engine,
            name,
            tool_call_required=name != "b",
            prompt_ids=whole.prompt_ids,
            generated=tuple(ids),
        )
        assert rest.prompt_ids == whole.prompt_ids
        called = "".join(part[3] for part in rest.tool_parts)
        if name == "b":
            assert rest.text()
            assert not called
        else:
            assert json.loads(called)["zone"] in ZONES
            assert not rest.text()
