"""Reads the tokens that are not plain text from a GGUF file: control tokens, unused ones, etc.

In: the path of a GGUF file. Out: those tokens' ids and texts. llama.cpp knows them, but shows no
text for them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import re
import struct
from pathlib import Path
from typing import Any

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
NORMAL, BYTE = 1, 6
# llama.cpp treats some tokens as control tokens whatever their type. All of them look so.
_LOOKS_LIKE_CONTROL = re.compile(r"[_▁]?(?:<.+>|\[.+\])", re.DOTALL)
_STRING, _ARRAY = 8, 9
# GGUF's types of numbers → the format of `struct`.
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


def marked_tokens(path: Path) -> dict[int, str]:
    """Return the id and the text of every token that may be no plain text.

    Returns nothing if the file has no vocabulary. Raises ValueError if it is malformed.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            fields = _Reader(data).fields({TOKENS, TYPES})
    except (struct.error, KeyError) as error:
        raise ValueError(f"{path} is not a GGUF file") from error
    tokens = fields.get(TOKENS, [])
    types = fields.get(TYPES) or [NORMAL] * len(tokens)
    return {
        token_id: text
        for token_id, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in (NORMAL, BYTE) or (kind == NORMAL and _LOOKS_LIKE_CONTROL.fullmatch(text))
    }


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4  # after "GGUF"

    def fields(self, names: set[str]) -> dict[str, Any]:
        """Return these fields of the file's metadata, and stop reading after the last of them."""
        self._number("I")  # the version
        self._number("Q")  # the number of tensors
        found: dict[str, Any] = {}
        for _ in range(self._number("Q")):
            name = self._string()
            value = self._value(self._number("I"))
            if name in names:
                found[name] = value
                if len(found) == len(names):
                    break
        return found

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_FORMATS[kind])
        kind, length = self._number("I"), self._number("Q")
        if kind in (_STRING, _ARRAY):
            return [self._value(kind) for _ in range(length)]
        numbers = struct.unpack_from(f"<{length}{_FORMATS[kind]}", self._data, self._at)
        self._at += struct.calcsize(f"<{length}{_FORMATS[kind]}")
        return numbers

    def _number(self, form: str) -> Any:
        (number,) = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return number

    def _string(self) -> str:
        length = self._number("Q")
        begin, self._at = self._at, self._at + length
        return self._data[begin : self._at].decode("utf-8", "replace")
