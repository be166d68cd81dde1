"""Every start of vLLM that fails names the reason and the next step, and exits with code 1.

tests/server/test_processes.py tests the start without vLLM installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import start
from tests.vllm.engines import engine_args

START_LIMIT_S = 300
MODEL = {"model": "opt"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    (MODEL | {"dtypo": "float32"}, "no engine argument 'dtypo'. Did you mean dtype?"),
    (MODEL | {"colour": "red"}, "no engine argument 'colour'. See vLLM's engine arguments."),
    (MODEL | {"dtype": "float31"}, "dtype: Input should be 'auto', 'half'"),
    (MODEL | {"tensor_parallel_size": "two"}, "tensor_parallel_size: Input should be a valid int"),
    (MODEL | {"max_model_len": 100_000}, "max_model_len (100000) is greater than"),
    (MODEL | {"distributed_executor_backend": "ray"}, "Please install Ray"),
    (MODEL | {"tool_call_parser": "hermez"}, "no tool_call_parser 'hermez'. Did you mean hermes?"),
    (MODEL | {"tool_call_parser": "?"}, "no tool_call_parser '?'. It has apertus, cohere_command3"),
    (MODEL | {"reasoning_parser": "qwen4"}, "no reasoning_parser 'qwen4'. Did you mean qwen3"),
    (MODEL | {"reasoning_parser": "deepseek_r1"}, "could not locate think start/end tokens"),
    ({"model": "empty"}, "'config.json'"),
    ({"model": "unknown"}, "model type `nothing`"),
    ({"model": "example/none-such"}, "--model is a folder or a name on the Hugging Face hub"),
]


@pytest.fixture(scope="module")
def answers(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Return the answer to each of REFUSED, then to valid arguments without and with a parser."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "opt").symlink_to(models / "opt")
    (folder / "empty").mkdir()
    (folder / "unknown").mkdir()
    (folder / "unknown" / "config.json").write_text('{"model_type": "nothing"}')
    right = [MODEL, MODEL | {"tool_call_parser": "hermes"}]
    lines = [json.dumps(each) for each in [*(wrong for wrong, _ in REFUSED), *right]]
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.refusals"],
        input="\n".join(lines),
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[what for _, what in REFUSED])
def test_an_invalid_argument_is_refused_with_vllm_s_reason(
    answers: list[list[str]], index: int
) -> None:
    said = " ".join(answers[index])
    assert REFUSED[index][1] in said
    assert "\n" not in said


def test_valid_arguments_are_accepted_without_and_with_a_parser_for_calls(
    answers: list[list[str]],
) -> None:
    assert answers[len(REFUSED) :] == [[], []]


def test_a_lack_of_memory_for_the_model_is_reported(models: Path) -> None:
    arguments = engine_args() | {"kv_cache_memory_bytes": 2**20}
    with start(
        engine="vllm",
        model=models / "opt",
        engine_arg=[f"{name}={json.dumps(value)}" for name, value in arguments.items()],
    ) as process:
        _, said = process.communicate(timeout=START_LIMIT_S)
    assert process.returncode == 1, said
    why, what_to_do = said.strip().splitlines()
    assert "larger than the available KV cache memory" in why
    assert "gpu_memory_utilization and tensor_parallel_size" in what_to_do
