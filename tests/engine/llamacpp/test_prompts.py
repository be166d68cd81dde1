"""Prompts that are rendered and tokenised in this process: the same as llama.cpp's own server's."""

import itertools
import json
import random
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.hub import find_model
from penstock.engine.turns import TemplateRefusedError
from penstock.request import Message, Request, ToolUse
from tests.engine.test_conformance import ask
from tests.support import smollm2
from tests.support.calling import tool
from tests.support.in_process import stop
from tests.support.recording import RecordingSink
from tests.support.templates import GEMMA, LLAMA, MISTRAL, PHI, PICKY, QWEN, REASONING, TOOLS
from tests.support.texts import TEXTS

SMOLLM2 = "smollm2"
NUMBERS = itertools.count()
TEMPLATES = {
    "rill": "",
    "tools": TOOLS,
    "reasoning": REASONING,
    "gemma": GEMMA,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen": QWEN,
    "phi": PHI,
    "picky": PICKY,
    SMOLLM2: "",
}
TOOL_LIST = json.dumps(
    [
        tool("look_up", {"name": {"type": "string", "description": "'<é>' & 😀"}}),
        tool("count", {"number": {"type": "number", "minimum": 1, "maximum": 2.5}}),
    ]
)
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "low"},
    {"open_answer": False},
    {"continue_last_message": True},
    {"template_kwargs": '{"enable_thinking": false, "x": [1.5, null, "é"]}'},
    {"tools": TOOL_LIST},
)


async def started(**arguments: Any) -> LlamaCpp:
    engine = LlamaCpp(name="m", slots=1, **arguments)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    await engine.start()
    for number, handler in handlers.items():  # llama.cpp has replaced them
        signal.signal(number, handler)
    return engine


@pytest.fixture(params=TEMPLATES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[LlamaCpp]:
    template = TEMPLATES[request.param]
    model = smollm2.find() if request.param == SMOLLM2 else find_model("rill")
    arguments = {"chat_template": template} if template else {}
    engine = await started(model=str(model), context=512, **arguments)
    yield engine
    await stop(engine)


@pytest.fixture(params=["rill", SMOLLM2])
async def plain(request: pytest.FixtureRequest) -> AsyncIterator[LlamaCpp]:
    model = smollm2.find() if request.param == SMOLLM2 else find_model("rill")
    engine = await started(model=str(model), context=512)
    yield engine
    await stop(engine)


def conversations(number: int) -> list[tuple[Message, ...]]:
    """Return random conversations, with turns that some templates refuse."""
    chance = random.Random(number)

    def turn() -> Message:
        text, thought = chance.choice(TEXTS), chance.choice(("", "", "I think.", " <é>\n"))
        role = chance.choice(("user", "user", "assistant", "assistant", "system", "tool"))
        if role == "tool":
            return Message(role, text, tool_call_id="abcdefghi")
        if role != "assistant":
            return Message(role, text)
        arguments = json.dumps({"name": text, "list": [1, None, True, "é"]}, ensure_ascii=False)
        calls = (ToolUse("abcdefghi", "look_up", arguments),) * chance.choice((0, 0, 0, 1, 2))
        return Message(role, text, thought, calls)

    system = (Message("system", chance.choice(TEXTS)),)
    found = [tuple(turn() for _ in range(chance.randint(1, 5))) for _ in range(12)]
    for length in range(1, 6):
        roles = ("user", "assistant") * 3
        talk = tuple(Message(role, chance.choice(TEXTS)) for role in roles[:length])
        found += [talk, system + talk]
    return found


async def theirs(engine: LlamaCpp, request: Request, messages: tuple[Message, ...]) -> str | None:
    try:
        return await engine._render(request, messages)
    except TemplateRefusedError:
        return None


async def ours(engine: LlamaCpp, request: Request, messages: tuple[Message, ...]) -> str | None:
    async def at_once(work: Callable[[], str]) -> str:
        return work()

    try:
        return await engine._prompts._renderer._render(request, messages, at_once)
    except TemplateRefusedError:
        return None


async def test_a_conversation_is_rendered_as_llama_cpp_does(engine: LlamaCpp) -> None:
    renderer = engine._prompts._renderer
    assert renderer._agrees
    assert renderer._agrees_on_tools
    num_shown = 0
    for number, variant in enumerate(VARIANTS):
        request = Request("", 1, **variant)
        for messages in conversations(number):
            expected = await theirs(engine, request, messages)
            assert await ours(engine, request, messages) == expected, (variant, messages)
            num_shown += expected is not None
    assert num_shown > 50


async def test_a_text_has_the_tokens_that_llama_cpp_finds(plain: LlamaCpp) -> None:
    for flags in ((False, False), (True, False), (False, True), (True, True)):
        fields = dict(zip(("add_special", "parse_special"), flags, strict=True))
        for text in TEXTS:
            body = msgspec.json.encode({"content": text, **fields})
            expected = json.loads(await plain._client.ask("/tokenize", body))["tokens"]
            ids = plain._vocabulary.ids_of(text, **fields)
            assert ids == expected, (text, fields)
            said = await plain._client.ask("/detokenize", msgspec.json.encode({"tokens": ids}))
            assert plain._vocabulary.text_of(ids) == json.loads(said)["content"]


async def test_pieces_have_the_tokens_that_llama_cpp_finds(plain: LlamaCpp) -> None:
    pieces: list[Any] = [*TEXTS[:4], 2, *TEXTS[4:8], 3, 3, *TEXTS[8:]]
    for begin in (0, 4):
        for flags in ({"add_special": True}, {"parse_special": True}, {}):
            fields = {"add_special": False, "parse_special": False, **flags}
            body = msgspec.json.encode({"content": pieces[begin:], **fields})
            expected = json.loads(await plain._client.ask("/tokenize", body))["tokens"]
            assert plain._vocabulary.ids_of_pieces(pieces[begin:], **fields) == expected


async def test_the_control_tokens_are_those_that_llama_cpp_finds(plain: LlamaCpp) -> None:
    found = plain._control._ids
    assert len(found) >= 5
    for text, token_id in found.items():
        body = msgspec.json.encode({"content": text})
        assert json.loads(await plain._client.ask("/tokenize", body))["tokens"] == [token_id]


async def test_a_request_makes_one_round_trip_to_llama_cpp() -> None:
    engine = await started(model=str(find_model("rill")), chat_template=REASONING)
    paths: list[str] = []
    opened = engine._client.open

    async def counted(path: str, *arguments: Any) -> Any:
        paths.append(path)
        return await opened(path, *arguments)

    engine._client.open = counted  # type: ignore[method-assign, assignment]
    hello, begun = Message("user", "Hello <|end|>"), Message("assistant", "Well,")
    mixed: list[dict[str, Any]] = [
        {"messages": (hello,), "separate_reasoning": True},
        {"messages": (Message("system", "S"), hello, begun, hello), "reasoning_effort": "none"},
        {"prompt": "Once"},
        {"messages": (hello, begun)},
    ]
    try:
        for fields in mixed:
            paths.clear()
            await answered(engine, **fields)
            assert paths == ["/completion"]
        for paths_expected in (["/apply-template", "/completion"], ["/completion"]):
            paths.clear()
            await answered(engine, messages=(hello, begun), template_kwargs='{"x": 1}')
            assert paths == paths_expected  # llama.cpp says once how such an answer begins
        paths.clear()
        await answered(engine, messages=(hello,), tools=TOOL_LIST)
        assert paths == ["/v1/chat/completions"]
    finally:
        await stop(engine)


async def answered(engine: LlamaCpp, **fields: Any) -> RecordingSink:
    sink = RecordingSink()
    engine.submit(ask(f"r{next(NUMBERS)}", 2, **{"prompt": None, **fields}), sink)
    await sink.end()
    assert sink.failure is None
    return sink


async def test_what_cannot_fit_is_not_tokenised(plain: LlamaCpp) -> None:
    def tokenise(*_: object, **__: object) -> list[int]:
        raise AssertionError("a prompt that cannot fit was tokenised")

    plain._vocabulary.ids_of = tokenise  # type: ignore[method-assign]
    for text in ("Once upon a time. ", "word ", "é", "😀", "a", " ", "\n", "0", "ab\n"):
        whole = text * (4_000_000 // len(text.encode()))
        for fields in ({"prompt": whole}, {"prompt": None, "messages": (Message("user", whole),)}):
            sink = RecordingSink()
            plain.submit(ask(f"r{next(NUMBERS)}", 2, **fields), sink)
            await sink.end()
            assert sink.failure is not None
            code, message = sink.failure
            assert code == "prompt_too_long"
            assert message.startswith("This model's maximum context length is 512 tokens. ")
            assert whole[:20] not in message
