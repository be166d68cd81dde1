"""The built-in model with a longer context than it was trained for: its text is noise, but real."""

import shutil
from pathlib import Path

from gguf import GGUFReader

from penstock.engine.llamacpp.hub import find_model

CONTEXT = "llama.context_length"


def long_rill(folder: Path, num_tokens: int) -> Path:
    """Write a copy of rill whose file says that its context has this many tokens."""
    path = folder / "rill.gguf"
    shutil.copyfile(find_model("rill"), path)
    field = GGUFReader(path, "r+").fields[CONTEXT]
    field.parts[field.data[0]][0] = num_tokens
    return path
