"""The supervisor reports why an engine did not start, and survives its own bugs."""

import asyncio
import gc
import logging
import sys
from typing import NoReturn

import pytest

from penstock.engine.process.supervisor import SupervisedEngine
from penstock.errors import StartError
from penstock.request import Request
from tests.support.recording import RecordingSink


class Complaining:
    """An engine that does not start and writes the reason to standard error."""

    def __init__(self, *, lines: str) -> None:
        self._lines = lines

    async def start(self) -> NoReturn:
        """Write `lines` to standard error. Raises StartError."""
        sys.stderr.write(self._lines)
        raise StartError("It did not start.", "Do something else.")


VLLM = "(EngineCore pid=9314) ERROR 11-24 11:13:01 [core.py:1510] "


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("0.00.123 E llama_model_load: no such tensor\n", "no such tensor"),
        ("Traceback:\nValueError: the first\nRuntimeError: the second\n", "ValueError: the first"),
        (
            f"{VLLM}EngineCore failed to start.\n{VLLM}Traceback (most recent call last):\n"
            + f"{VLLM}  File x, line 1\n" * 100
            + f"{VLLM}torch.OutOfMemoryError: no memory\nRuntimeError: See root cause above.\n",
            "torch.OutOfMemoryError: no memory",
        ),
        ("INFO: all is well\n", ""),
    ],
    ids=["llama.cpp", "Python", "vLLM", "nothing"],
)
async def test_the_first_error_that_the_engine_wrote_is_the_reason(
    lines: str, complaint: str
) -> None:
    engine = SupervisedEngine("tests.engine.process.test_supervisor:Complaining", {"lines": lines})
    with pytest.raises(StartError) as caught:
        await engine.start()
    assert str(caught.value) == f"It did not start. It says: {complaint}".removesuffix(
        "" if complaint else " It says: "
    )
    assert caught.value.hint == "Do something else."


async def test_a_process_that_does_not_start_leaves_no_socket_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError("out of processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    engine = SupervisedEngine("penstock.engine.mock:Mock", {})
    with pytest.raises(OSError, match="out of processes"):
        await engine.start()
    gc.collect()  # pytest reports a socket that is still open


async def test_a_bug_with_one_request_does_not_reach_another_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def break_down() -> None:
        raise StopIteration

    engine = SupervisedEngine("penstock.engine.mock:Mock", {"interval": 0.001, "length": 20})
    await engine.start()
    try:
        broken, sound = RecordingSink(on_delta=break_down), RecordingSink()
        for name, sink in (("broken", broken), ("sound", sound)):
            engine.submit(Request(id=name, prompt="Hello", max_tokens=20), sink)
        await sound.end()
        await broken.end()
        assert sound.calls == ["accepted", "started", *["delta"] * 20, "finish"]
        assert engine.num_restarts == 0
        assert engine.num_requests == 0
    finally:
        await engine.stop()
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


async def test_a_cancelled_request_counts_for_its_model_until_the_engine_lets_go_of_it() -> None:
    options = {"interval": 0.01, "length": 8000, "stopping": 1000, "name": "small"}
    engine = SupervisedEngine("penstock.engine.mock:Mock", options)
    await engine.start()
    try:
        for model in ("", "large"):
            begun = asyncio.Event()
            sink = RecordingSink(on_delta=begun.set)
            engine.submit(Request(id=f"of {model}", prompt="Hello", max_tokens=8000), sink)
            async with asyncio.timeout(20):
                await begun.wait()
            engine.cancel(f"of {model}", model)
        assert engine.num_stopping == 2
        assert [engine.num_stopping_of(each) for each in ("small", "large", "other")] == [1, 1, 0]
    finally:
        await engine.stop()
