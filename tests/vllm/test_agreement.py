"""The built-in model gives the same answers in llama.cpp (f16 weights) and in vLLM (f32).

The test decodes greedily, token by token. Two ways of computing the same sum differ in the last
digits, so the engines may choose differently if two tokens are a near tie. Then the test checks the
model's own logits and warns; anything but a near tie is a failure.
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from penstock.engine.catalog import ENGINES
from penstock.engine.llamacpp.hub import find_model
from penstock.engine.process.supervisor import SupervisedEngine
from tests.engine.test_conformance import ask
from tests.support.recording import RecordingSink
from tests.vllm.engines import SLOTS, SharedCase, end_of

NUM_TOKENS = 64
NEAR_TIE = 0.05  # in logits; llama.cpp keeps weights and cache with 11 significant bits

PROMPTS = [
    "Once upon a time",
    "One morning the fox",
    "The old miller",
    "Long ago, in a village by the sea,",
    "A girl named Ada",
    "The river",
    "There was a boy who",
    "Every evening the lighthouse keeper",
    "In the middle of the forest",
    "The cat and the dog",
    "When the rain stopped,",
    "Tell me a story",
    "What is a penstock?",
    "Water comes down from the hills",
    "My grandmother",
    "The little boat",
    "Deep under the mountain",
    "He opened the door and",
    "On the first day of winter",
    "Nobody knew why",
]


@pytest.mark.filterwarnings("always::UserWarning")  # shown, not an error
@pytest.mark.parametrize("case", ["rill"], indirect=True, scope="session")
async def test_the_built_in_model_says_the_same_in_both_engines(
    case: SharedCase, models: Path
) -> None:
    requests = [ask(f"{n}", NUM_TOKENS, prompt=prompt) for n, prompt in enumerate(PROMPTS)]
    options = {"model": str(find_model("rill")), "name": "rill", "slots": SLOTS}
    llama = SupervisedEngine(ENGINES["llamacpp"].target, options)
    await llama.start()
    try:
        theirs = [await end_of(llama, request) for request in requests]
    finally:
        await llama.stop()
    async with case.running() as engine:
        ours = [await end_of(engine, request) for request in requests]

    for prompt, one, other in zip(PROMPTS, theirs, ours, strict=True):
        assert one.prompt_tokens == other.prompt_tokens, prompt
        if one.text() == other.text():
            assert one.completion_tokens == other.completion_tokens
        else:
            say_why(prompt, one, other, models / "rill")


def say_why(prompt: str, one: RecordingSink, other: RecordingSink, model: Path) -> None:
    """Explain why two texts differ. Fails unless the first different tokens are a near tie."""
    assert len(one.token_ids) == one.completion_tokens, "an id is not known"
    pairs = enumerate(zip(one.token_ids, other.token_ids, strict=False))
    at = next(index for index, (left, right) in pairs if left != right)
    question = [prompt_ids(model, prompt) + one.token_ids[:at], one.token_ids[at]]
    command = [sys.executable, "-m", "tests.vllm.logits", str(model)]
    answer = subprocess.run(
        command,
        input=json.dumps([*question, other.token_ids[at]]),
        check=True,
        capture_output=True,
        text=True,
    )
    left, right = json.loads(answer.stdout)
    what = f"{prompt!r}: llama.cpp and vLLM part at token {at}, with logits {left} and {right}"
    assert abs(left - right) < NEAR_TIE, what
    warnings.warn(f"{what}: a near tie", stacklevel=1)


def prompt_ids(model: Path, prompt: str) -> list[int]:
    """Return the prompt's token ids, which are the same in both engines."""
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(model / "tokenizer.json")).encode(prompt).ids
    return ids
