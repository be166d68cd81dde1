"""Reads the length of a model's own context from its GGUF file, without loading the model.

In: the file's path. Out: a number of tokens. Not known here: llama.cpp, which cannot tell that
number before it has reserved the memory for a larger context.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of values
LENGTH = struct.Struct("<Q")
TYPE = struct.Struct("<I")
STRING, ARRAY = 8, 9
# The numbers' types, by their codes in the file.
NUMBERS = {
    code: struct.Struct("<" + letter)
    for code, letter in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}.items()
} | {code: struct.Struct("<" + letter) for code, letter in {10: "Q", 11: "q", 12: "d"}.items()}


def context_length(path: str) -> int:
    """Return the context in tokens that the model was made for; 0 if the file does not say."""
    try:
        with Path(path).open("rb") as file:
            magic, *_, num_values = _read(file, HEADER)
            if magic != b"GGUF":
                return 0
            for _ in range(num_values):
                key = file.read(*_read(file, LENGTH))
                (kind,) = _read(file, TYPE)
                if key.endswith(b".context_length") and kind in NUMBERS:
                    return int(_read(file, NUMBERS[kind])[0])
                _skip(file, kind)
    except (OSError, ValueError, OverflowError, MemoryError, struct.error, KeyError):
        pass  # llama.cpp says what is wrong with the file
    return 0


def _read(file: BinaryIO, layout: struct.Struct) -> tuple[Any, ...]:
    return layout.unpack(file.read(layout.size))


def _skip(file: BinaryIO, kind: int, count: int = 1) -> None:
    if kind == STRING:
        for _ in range(count):
            file.seek(_read(file, LENGTH)[0], os.SEEK_CUR)
    elif kind == ARRAY:
        (kind,), (count,) = _read(file, TYPE), _read(file, LENGTH)
        _skip(file, kind, count)
    else:
        file.seek(NUMBERS[kind].size * count, os.SEEK_CUR)
