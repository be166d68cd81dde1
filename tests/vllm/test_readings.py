"""Calls after reasoning are found in what a model could say, however vLLM cuts it: by parsers of
vLLM's two kinds, one of which goes by text and one by tokens, and with reasoning told apart by the
template's marks and by a parser."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.api.openai_tools import Tool
from tests.wire.test_openai_tools import BOTH

CALLS = {
    "hermes": '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>',
    "qwen3_coder": (
        "<tool_call>\n<function=get_time>\n<parameter=zone>\nUTC\n</parameter>\n</function>\n"
        "</tool_call>"
    ),
}
CASES = list(itertools.product(CALLS, ["", "deepseek_r1", "qwen3"], [1, 3, 1000]))


@pytest.fixture(scope="module")
def readings(models: Path) -> list[Any]:
    """What is made of each of CASES."""
    tools = [Tool.model_validate(tool).shown() for tool in BOTH]
    lines = [
        json.dumps([parser, thoughts, tools, f"Hm.\n</think>\n\nYes.\n{CALLS[parser]}", step])
        for parser, thoughts, step in CASES
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.readings", str(models / "thinker")],
        input="\n".join(lines),
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("index", range(len(CASES)), ids=map(str, CASES))
def test_a_call_after_reasoning_is_found_however_it_is_cut(readings: list[Any], index: int) -> None:
    thought, said, calls = readings[index]
    assert (thought.strip(), said.strip()) == ("Hm.", "Yes.")
    ((name, arguments),) = calls
    assert (name, json.loads(arguments)) == ("get_time", {"zone": "UTC"})
