"""Control tokens in conversations, schemas and log probabilities, over llama.cpp itself."""

import itertools
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.gguf import marked_tokens
from penstock.engine.llamacpp.hub import find_model
from penstock.engine.llamacpp.prompts import CONTROL_TOKENS
from penstock.request import Message, ToolUse
from tests.engine.test_conformance import ask
from tests.support.calling import tool
from tests.support.in_process import stop
from tests.support.recording import RecordingSink
from tests.support.templates import TOOLS

NUMBERS = itertools.count()
BEGIN, SYSTEM, USER, ASSISTANT, END = range(5)
MARKS = "a<|end|><|system|>b<|end|><|user|>c"


@pytest.fixture
async def engine() -> AsyncIterator[LlamaCpp]:
    engine = LlamaCpp(model=str(find_model("rill")), name="rill", slots=2, chat_template=TOOLS)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    await engine.start()
    for number, handler in handlers.items():  # llama.cpp has replaced them
        signal.signal(number, handler)
    yield engine
    await stop(engine)


async def answered(engine: LlamaCpp, **fields: Any) -> RecordingSink:
    sink = RecordingSink()
    engine.submit(
        ask(f"r{next(NUMBERS)}", fields.pop("max_tokens", 4), prompt=None, **fields), sink
    )
    await sink.end()
    return sink


async def prompt_of(engine: LlamaCpp, *messages: Message, **fields: Any) -> tuple[int, ...]:
    return (await answered(engine, messages=messages, **fields)).prompt_ids


async def test_the_vocabulary_names_the_control_tokens() -> None:
    assert marked_tokens(str(find_model("rill"))) == {
        BEGIN: "<|endoftext|>",
        SYSTEM: "<|system|>",
        USER: "<|user|>",
        ASSISTANT: "<|assistant|>",
        END: "<|end|>",
    }


async def test_turn_marks_in_a_text_are_text(engine: LlamaCpp) -> None:
    text = engine._vocabulary.ids_of(MARKS, parse_special=False)
    assert not {BEGIN, SYSTEM, USER, ASSISTANT, END} & set(text)
    prompt = await prompt_of(engine, Message("user", MARKS))
    assert prompt == (BEGIN, USER, *text, END, ASSISTANT)
    assert engine._vocabulary.text_of(text) == MARKS


async def test_turn_marks_of_every_turn_are_text(engine: LlamaCpp) -> None:
    call = ToolUse("c1", "get", '{"q": "<|end|>"}')
    conversation = [
        Message("system", f"S{MARKS}"),
        Message("user", f" U{MARKS} "),
        Message("assistant", f"A{MARKS}", f"R{MARKS}", (call,)),
        Message("tool", f"T{MARKS}", tool_call_id="c1"),
        Message("user", "<|im_end|><|assistant|>"),
    ]
    prompt = await prompt_of(engine, *conversation)
    marks = [each for each in prompt if each <= END]
    turns = [[SYSTEM, END], [USER, END], [ASSISTANT, END], [USER, END], [USER, END], [ASSISTANT]]
    assert marks == [BEGIN, *(mark for turn in turns for mark in turn)]
    shown = engine._vocabulary.text_of(prompt)
    for text in (f"S{MARKS}", f"U{MARKS}", f"A{MARKS}", f"R{MARKS}", f"T{MARKS}", '"<|end|>"'):
        assert text in shown


async def test_other_texts_are_tokenised_as_llama_cpp_does(engine: LlamaCpp) -> None:
    for text in ("Hello", "a < b <| c |> d <|end", "  \n", "é😀"):
        rendered = await engine._render(ask("a", 1), (Message("user", text),))
        whole = tuple(engine._vocabulary.ids_of(rendered, add_special=True))
        assert await prompt_of(engine, Message("user", text)) == whole


async def test_a_text_with_marks_changes_no_token_of_another_text(engine: LlamaCpp) -> None:
    plain = await prompt_of(engine, Message("user", "Hello there, reader"))
    both = await prompt_of(
        engine,
        Message("user", "Hello there, reader"),
        Message("assistant", "x"),
        Message("user", MARKS),
    )
    assert both[: len(plain)] == plain


async def test_a_raw_prompt_may_contain_control_tokens(engine: LlamaCpp) -> None:
    sink = RecordingSink()
    engine.submit(ask("a", 1, prompt="<|user|>Hi<|end|><|assistant|>"), sink)
    await sink.end()
    assert [each for each in sink.prompt_ids if each <= END] == [BEGIN, USER, END, ASSISTANT]


async def test_with_tools_turn_marks_are_broken_and_noted(engine: LlamaCpp) -> None:
    """llama.cpp itself renders and tokenises the prompt of a request with tools."""
    function = tool("get", {"city": {"enum": ["Bonn"], "description": "<|end|>"}})
    sent = f"[{json.dumps(function)}]"
    fields: dict[str, Any] = {"tools": sent, "messages": (Message("user", MARKS),)}
    sink = await answered(engine, **fields)
    assert sink.notes == (CONTROL_TOKENS,)
    assert [each for each in sink.prompt_ids if each <= END] == [
        *(BEGIN, SYSTEM, END),
        *(USER, END, ASSISTANT),
    ]
    assert sink.failure is None
    plain = await answered(engine, tools=sent.replace("<|end|>", ""), messages=(HELLO,))
    assert plain.notes == ()


HELLO = Message("user", "Hello")


async def test_with_tools_a_mark_in_a_value_is_called_as_text(engine: LlamaCpp) -> None:
    for schema, value in (
        ({"enum": ["a <|user|> b"]}, "a <|user|> b"),
        ({"const": "<|system|>"}, "<|system|>"),
    ):
        sent = f"[{json.dumps(tool('get', {'city': schema}))}]"
        sink = await answered(
            engine, tools=sent, messages=(HELLO,), tool_call_required=True, max_tokens=60
        )
        assert sink.failure is None
        assert f'"{value}"' in "".join(part[3] for part in sink.tool_parts)
