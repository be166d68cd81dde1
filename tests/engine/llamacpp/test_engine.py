"""The llama.cpp engine beyond the conformance test. It runs in the test's own process."""

import asyncio
import json
import signal
from typing import Any

import pytest

from penstock.engine.compiled import InvalidSchemaError
from penstock.engine.grammar import compact_schema, is_json
from penstock.engine.llamacpp.answers import CompletionReader
from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.hub import find_model
from penstock.request import Message
from tests.engine.test_conformance import ask
from tests.support.calling import BOTH
from tests.support.concluding import Concluding
from tests.support.in_process import stop
from tests.support.recording import RecordingSink
from tests.support.templates import REASONING


async def test_a_long_prompt_gives_signs_of_life_before_its_first_token() -> None:
    engine = LlamaCpp(model=str(find_model("rill")), name="rill", slots=1, n_batch=128)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    await engine.start()
    for number, handler in handlers.items():  # llama.cpp has replaced them
        signal.signal(number, handler)
    try:
        sink = RecordingSink()
        engine.submit(ask("a", 2, prompt="word " * 700), sink)
        await sink.end()
    finally:
        await stop(engine)
    before_first_delta = sink.calls[: sink.calls.index("delta")]
    assert before_first_delta[:2] == ["accepted", "started"]
    assert before_first_delta.count("working") >= 5


async def test_every_kind_of_answer_leaves_its_slot_before_its_client_learns_of_the_end() -> None:
    """The client may continue the conversation at once, and finds its cache only in that slot."""
    engine = LlamaCpp(model=str(find_model("rill")), name="rill", slots=2, chat_template=REASONING)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    await engine.start()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    called: dict[str, Any] = {
        "prompt": None,
        "messages": (Message("user", "What time is it?"),),
        "tools": json.dumps(BOTH[1:]),
    }
    kinds: dict[str, dict[str, Any]] = {
        "one request": {},
        "reasoning": {"prompt": None, "messages": called["messages"], "separate_reasoning": True},
        "steps": {"min_tokens": 3},
        "calls in Penstock's form": {**called, "tool_call_required": True},
        "calls in the template's form": called,
    }
    taken: list[int] = []

    def look() -> None:
        taken.append(len(engine._caches._slot_of))

    try:
        for kind, fields in kinds.items():
            taken.clear()
            sink, has_stopped = RecordingSink(on_delta=look, on_end=look), asyncio.Event()
            engine.submit(ask(kind, 6, **fields), sink)
            await sink.end()
            assert sink.reason in ("length", "stop"), kind
            assert taken[-1] == 0, kind
            assert set(taken[:-1]) <= {1}, kind
            engine.cancel(kind, has_stopped.set)
            await has_stopped.wait()
    finally:
        await stop(engine)


async def test_an_engine_without_a_cache_reads_every_prompt_anew() -> None:
    """Its argument counts, for prompts and for conversations."""
    params: dict[str, Any] = {"chat_template": REASONING, "cache_prompt": False}
    engine = LlamaCpp(model=str(find_model("rill")), name="rill", slots=1, **params)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    await engine.start()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    chat = {"messages": (Message("user", "What time is it?"),), "tools": json.dumps(BOTH[1:])}
    asked: tuple[dict[str, Any], ...] = ({}, {"prompt": None, **chat})
    try:
        for fields in asked:
            for name in ("first", "again"):
                sink = RecordingSink()
                engine.submit(ask(name, 2, **fields), sink)
                await sink.end()
                assert sink.reason == "length"
                assert sink.cached_tokens == 0, name
    finally:
        await stop(engine)


@pytest.mark.parametrize(
    ("text", "stop_type", "ending"),
    [
        ('{"a": 1}', "eos", "finish"),
        (' upon a time {"a": 1}', "eos", "fail"),
        ('{"a": ', "limit", "finish"),
    ],
)
async def test_an_answer_that_does_not_follow_its_schema_fails(
    text: str, stop_type: str, ending: str
) -> None:
    """llama.cpp drops a grammar that it can no longer follow, and only logs that."""
    sink = RecordingSink()
    reader = CompletionReader(sink, 0, is_json)
    for chunk in (
        {"content": text, "tokens": [1], "tokens_predicted": 1},
        {"content": "", "tokens_predicted": 1, "stop": True, "stop_type": stop_type},
    ):
        reader.feed(b"data: %b\n\n" % json.dumps(chunk).encode())
    reader.end(200)
    assert sink.calls == ["delta", ending]
    if ending == "fail":
        assert sink.failure is not None
        assert sink.failure[0] == "schema_lost"


def test_an_impossible_token_has_openai_s_lowest_log_probability() -> None:
    sink = RecordingSink()
    chunk = {
        "content": "a",
        "tokens": [1],
        "tokens_predicted": 1,
        "completion_probabilities": [{"id": 1, "bytes": [97], "logprob": -3.4e38}],
    }
    reader = CompletionReader(sink, 0)
    reader.feed(b"data: %b\n\n" % json.dumps(chunk).encode())
    assert [each.logprob for each in sink.logprobs] == [-9999.0]


def test_the_message_about_a_bad_schema_does_not_repeat_the_schema() -> None:
    for bad in ({"$ref": "http://zqxj"}, {"type": "string", "pattern": "(zqxj"}, {"type": "zqxj"}):
        with pytest.raises(InvalidSchemaError) as refused:
            compact_schema(json.dumps(bad))
        assert "zqxj" not in str(refused.value)
        assert 10 < len(str(refused.value)) <= 200


def test_an_object_may_have_400_properties_and_no_more() -> None:
    for place in ("properties", "items"):
        many = {f"p{number}": {"type": "string"} for number in range(400)}
        schema: dict[str, Any] = {"type": "object", "properties": many}
        whole = schema if place == "properties" else {"type": "array", "items": schema}
        compact_schema(json.dumps(whole))
        many["one"] = {}
        with pytest.raises(InvalidSchemaError, match="more than 400 properties"):
            compact_schema(json.dumps(whole))


async def test_a_continuation_knows_whether_the_model_still_thinks() -> None:
    engine = Concluding(
        model=str(find_model("rill")), name="rill", slots=1, chat_template=REASONING
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    await engine.start()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        whole, in_thought, in_answer = RecordingSink(), RecordingSink(), RecordingSink()
        fields: dict[str, Any] = {
            "prompt": None,
            "messages": (Message("user", "Hi"),),
            "separate_reasoning": True,
        }
        engine.submit(ask("a", 22, **fields), whole)
        await whole.end()
        fields["prompt_ids"] = whole.prompt_ids
        # The grammar starts again from the beginning: it generates small letters, which are
        # thoughts after the opened mark, and text after an answer.
        engine.submit(ask("b", 3, **fields, generated=tuple(whole.token_ids[:3])), in_thought)
        await in_thought.end()
        engine.submit(ask("c", 3, **fields, generated=tuple(whole.token_ids)), in_answer)
        await in_answer.end()
    finally:
        await stop(engine)
    assert "".join(whole.thoughts).islower()
    assert whole.text().isupper()
    assert len(whole.token_ids) == whole.num_tokens == whole.completion_tokens == 22
    assert in_thought.thoughts
    assert not in_thought.text()
    assert in_answer.text()
    assert not in_answer.thoughts
