"""Tool calls after reasoning are found however vLLM cuts the text; reasoning survives a death.

The tests use both kinds of vLLM's parsers, which read text or tokens, and separate the reasoning by
the template's marks or by a parser.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.api.openai.tools import Tool
from tests.support.calling import BOTH

CALLS = {
    "hermes": '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>',
    "qwen3_coder": (
        "<tool_call>\n<function=get_time>\n<parameter=zone>\nUTC\n</parameter>\n</function>\n"
        "</tool_call>"
    ),
}
CASES = list(itertools.product(CALLS, ["", "deepseek_r1", "qwen3"], [1, 3, 1000]))
DEATHS = list(itertools.product(["", "deepseek_r1", "qwen3"], [False, True], range(1, 9)))
# These parsers cannot force a call, so a required call has Penstock's form, which is Hermes's.
UNFORCING = list(
    itertools.product(["dots", "gemma4", "minimax_m3", "poolside_v1"], ["", "deepseek_r1"])
)


@pytest.fixture(scope="module")
def readings(models: Path) -> list[Any]:
    """Return the reading of each of CASES, then of each of DEATHS and of UNFORCING."""
    tools = [Tool.model_validate(tool).shown() for tool in BOTH]
    text = "Hm.\n</think>\n\nYes.\n"
    lines = [
        *(
            [calls, thoughts, tools, False, text + CALLS[calls], step, None]
            for calls, thoughts, step in CASES
        ),
        *(
            ["hermes", thoughts, tools if calls else None, False, text, 1, death]
            for thoughts, calls, death in DEATHS
        ),
        *(
            [parser, thoughts, tools, True, f"Hm.\n</think>\n\n{CALLS['hermes']}", 1, None]
            for parser, thoughts in UNFORCING
        ),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.readings", str(models / "thinker")],
        input="\n".join(map(json.dumps, lines)),
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


@pytest.mark.parametrize("index", range(len(DEATHS)), ids=map(str, DEATHS))
def test_thoughts_go_on_wherever_the_engine_dies(readings: list[Any], index: int) -> None:
    thought, said, calls = readings[len(CASES) + index]
    assert (thought.strip(), said.strip(), calls) == ("Hm.", "Yes.", [])


@pytest.mark.parametrize("index", range(len(UNFORCING)), ids=map(str, UNFORCING))
def test_a_call_that_a_parser_cannot_force_has_penstock_s_form(
    readings: list[Any], index: int
) -> None:
    thought, said, calls = readings[len(CASES) + len(DEATHS) + index]
    assert (thought.strip(), said.strip()) == ("Hm.", "")
    ((name, arguments),) = calls
    assert (name, json.loads(arguments)) == ("get_time", {"zone": "UTC"})
