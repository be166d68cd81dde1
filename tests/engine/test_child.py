"""What the server makes of what an engine's process writes before it gives up."""

import sys
from typing import NoReturn

import pytest

from penstock.engine.child import ChildEngine
from penstock.errors import StartError


class Complaining:
    """An engine that cannot start, and says why on its standard error."""

    def __init__(self, *, lines: str) -> None:
        self._lines = lines

    async def start(self) -> NoReturn:
        """See above."""
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
async def test_the_first_error_that_it_wrote_is_the_reason(lines: str, complaint: str) -> None:
    engine = ChildEngine("tests.engine.test_child:Complaining", {"lines": lines})
    with pytest.raises(StartError) as caught:
        await engine.start()
    assert str(caught.value) == f"It did not start. It says: {complaint}".removesuffix(
        "" if complaint else " It says: "
    )
    assert caught.value.hint == "Do something else."
