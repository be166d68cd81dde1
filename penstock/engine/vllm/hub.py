"""Checks what `--model` names before vLLM starts: vLLM itself finds and downloads models.

In: a folder, or `owner/repo` on the Hugging Face hub. Out: the same, or a StartError that names the
next step. Does not import vLLM.
"""

from pathlib import Path

from penstock.engine.catalog import BUILT_IN_MODEL
from penstock.errors import StartError


def check_model(model: str) -> str:
    """Return `model` unchanged. Raises StartError if vLLM certainly cannot serve it."""
    if model == BUILT_IN_MODEL:
        raise StartError(
            f"vLLM cannot serve {BUILT_IN_MODEL}, the built-in model, because it is a GGUF file.",
            "Choose another model, by folder or as owner/repo: --model facebook/opt-350m",
        )
    if model.startswith((".", "/")) and not Path(model).is_dir():
        raise StartError(
            f"There is no folder {model} with a model.",
            "Give the folder of a Hugging Face checkpoint, or owner/repo on the hub.",
        )
    return model
