"""What llama.cpp's engine adds to llama.cpp: the model's own sampling, and answers in steps."""

from pathlib import Path
from typing import Any

import gguf
import msgspec
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from penstock.engine.llamacpp.hub import find_model
from penstock.engine.process.supervisor import SupervisedEngine
from penstock.request import Message, Request, Sampling
from tests.support.recording import RecordingSink
from tests.support.templates import REASONING

TARGET = "penstock.engine.llamacpp.engine:LlamaCpp"
RILL = str(find_model("rill"))
HELLO = (Message("user", "Hello!"),)
OWN = {"temp": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.125, "penalty_repeat": 1.5}


def with_sampling(path: Path) -> str:
    """Write a copy of the built-in model whose file names its sampling, and return its path."""
    reader = gguf.GGUFReader(RILL)
    writer = gguf.GGUFWriter(path, "llama")
    types = gguf.GGUFValueType
    details = {
        f"general.sampling.{name}": MetadataDetails(
            types.INT32 if isinstance(value, int) else types.FLOAT32, value
        )
        for name, value in OWN.items()
    }
    copy_with_new_metadata(reader, writer, details, [])
    return str(path)


async def end_of(engine: SupervisedEngine, request: Request) -> RecordingSink:
    sink = RecordingSink()
    engine.submit(request, sink)
    return await sink.end()


async def test_a_model_s_file_says_how_it_is_sampled_by_default(tmp_path: Path) -> None:
    for model, expected in (
        (
            with_sampling(tmp_path / "own.gguf"),
            Sampling(0.25, 0.5, 7, None, 0.0, 0.0, (), 0.125, 1.5),
        ),
        (RILL, Sampling(0.8, 0.95, 40, None, 0.0, 0.0, (), 0.05, 1.0)),  # llama.cpp's own
    ):
        engine = SupervisedEngine(TARGET, {"model": model, "name": "rill", "slots": 1})
        info = await engine.start()
        await engine.stop()
        assert info.sampling == expected


@pytest.fixture
async def thinker() -> Any:
    engine = SupervisedEngine(
        TARGET, {"model": RILL, "name": "rill", "slots": 2, "chat_template": REASONING}
    )
    await engine.start()
    yield engine
    await engine.stop()


def thinking(id: str, budget: int | None, **fields: Any) -> Request:  # noqa: A002 - the field's name
    values: dict[str, Any] = {"messages": HELLO, "sampling": Sampling(temperature=0.0), **fields}
    return Request(id, 60, separate_reasoning=True, thinking_budget=budget, **values)


async def test_reasoning_ends_with_its_budget_also_when_continued(thinker: Any) -> None:
    free = await end_of(thinker, thinking("free", None))
    assert not free.text()  # the built-in model never stops thinking
    for budget in (0, 1, 12):
        sink = await end_of(thinker, thinking(f"{budget}", budget, ignore_eos=True))
        assert sink.failure is None
        assert sink.text()
        assert "".join(sink.thoughts) == free_start(free, sink)
        assert sink.completion_tokens == sink.num_tokens == 60
        assert sink.token_ids[:budget] == free.token_ids[:budget]
    for at in (3, 12, 30):
        again = msgspec.structs.replace(
            thinking(f"at {at}", 12, ignore_eos=True),
            max_tokens=60 - at,
            messages=None,
            prompt_ids=sink.prompt_ids,
            generated=tuple(sink.token_ids[:at]),
        )
        rest = await end_of(thinker, again)
        assert rest.token_ids == sink.token_ids[at:]
        assert sink.text().endswith(rest.text())


def free_start(free: RecordingSink, sink: RecordingSink) -> str:
    """Return the beginning of the free reasoning, as long as that of `sink`."""
    return "".join(free.thoughts)[: len("".join(sink.thoughts))]


async def test_a_budget_changes_nothing_if_the_model_does_not_reason(thinker: Any) -> None:
    plain = await end_of(thinker, thinking("a", None, reasoning_effort="none"))
    bound = await end_of(thinker, thinking("b", 5, reasoning_effort="none"))
    assert plain.token_ids == bound.token_ids
    assert plain.text() == bound.text() != ""


async def test_the_template_reads_the_request_s_variables(thinker: Any) -> None:
    off = await end_of(thinker, thinking("a", None, reasoning_effort="none"))
    also = await end_of(thinker, thinking("b", None, template_kwargs='{"enable_thinking": false}'))
    assert off.prompt_ids == also.prompt_ids


async def test_what_llama_cpp_cannot_combine_is_refused(thinker: Any) -> None:
    schema = '{"type": "object"}'
    for fields in ({"ignore_eos": True}, {"min_tokens": 3}):
        sink = await end_of(thinker, thinking(str(fields), None, json_schema=schema, **fields))
        assert sink.calls == ["fail"]
        assert sink.failure is not None
        assert sink.failure[0] == "unsupported_field"
