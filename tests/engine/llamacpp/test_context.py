"""The context that llama.cpp's slots get, by `--context` and by the machine's memory."""

import signal
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.llamacpp import loading
from penstock.engine.llamacpp.engine import LlamaCpp
from penstock.engine.llamacpp.gguf import context_length
from penstock.engine.llamacpp.hub import find_model, size_of
from penstock.engine.llamacpp.memory import available_memory, memory_to_leave
from penstock.errors import StartError

GIB = 2**30
MIB = 2**20
RILL = str(find_model("rill"))
OWN = 1024


async def context_of(slots: int = 2, **arguments: Any) -> int:
    """Return the context of each slot of the built-in model, started with these arguments."""
    engine = LlamaCpp(model=RILL, name="rill", slots=slots, **arguments)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return (await engine.start()).context_length
    finally:
        for number, handler in handlers.items():  # llama.cpp has replaced them
            signal.signal(number, handler)
        await engine.stop()


@pytest.mark.parametrize(
    ("total", "available", "model", "left"),
    [
        (24, 24, 0, 12),
        (24, 24, 4, 10),  # 4 for the model, 10 of the other 20 for the contexts
        (16, 10, 5, 8.5),
        (16, 2, 5, 11),  # nothing for the contexts: they become as small as llama.cpp lets them
        (16, 16, 40, 0),
    ],
)
def test_the_contexts_may_fill_half_of_the_memory_that_the_model_leaves(
    total: float, available: float, model: float, left: float
) -> None:
    assert memory_to_leave(int(total * GIB), int(available * GIB), int(model * GIB)) == int(
        left * GIB
    )


def test_no_more_memory_is_available_than_there_is() -> None:
    assert 0 < available_memory(GIB) <= GIB


async def test_a_slot_has_the_model_s_own_context_if_it_fits() -> None:
    assert await context_of() == OWN


async def test_a_slot_s_context_is_lowered_to_fit_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The 8 contexts need 16 MiB, the model about 12."""
    available = size_of(RILL) + 30 * MIB
    monkeypatch.setattr(loading, "available_memory", lambda _: available)
    assert 256 <= await context_of(8, fit_params_min_ctx=256) < OWN
    assert await context_of(8) == OWN  # never less than 4,096, or the model's own


async def test_the_setting_gives_each_slot_its_context() -> None:
    assert await context_of(slots=1, context=512) == 512
    assert await context_of(slots=3, context=512) == 512
    assert await context_of(slots=2, context=300) == 512  # a multiple of 256


async def test_n_ctx_replaces_the_setting() -> None:
    assert await context_of(slots=2, context=99_999, n_ctx=512) == 256


async def test_a_context_larger_than_the_model_s_own_is_refused() -> None:
    assert await context_of(context=OWN) == OWN
    with pytest.raises(StartError) as refused:
        await context_of(context=OWN + 1)
    assert str(refused.value) == (
        "--context 1025 is larger than the model's own context, 1024 tokens."
    )
    assert "at most 1024" in (refused.value.hint or "")


def test_a_file_s_own_context_is_read_from_its_metadata(tmp_path: Path) -> None:
    assert context_length(RILL) == OWN
    whole = Path(RILL).read_bytes()[:65536]
    broken = tmp_path / "broken.gguf"
    for content in (b"", b"GGUF", b"text" * 100, whole[:40], whole[:20] + b"\xff" * 500):
        broken.write_bytes(content)
        assert context_length(str(broken)) == 0
    assert context_length(str(tmp_path / "missing")) == 0


def test_the_size_of_a_model_includes_all_its_parts(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m[x]-0000{number}-of-00003.gguf").write_bytes(b"x" * number)
    (tmp_path / "other-00002-of-00003.gguf").write_bytes(b"x" * 100)
    assert size_of(str(tmp_path / "m[x]-00001-of-00003.gguf")) == 6
    assert size_of(RILL) == Path(RILL).stat().st_size
