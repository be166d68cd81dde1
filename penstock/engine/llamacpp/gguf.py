"""Reads values from a GGUF file, without loading the model.

In: the file's path and the values' names. Out: the values. Not known here: llama.cpp, which tells
some of them only after it has loaded the model, and others never.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import re
import struct
from pathlib import Path
from typing import Any

STRING, ARRAY = 8, 9
# The numbers' types in the file → the format of `struct`.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MODEL, END = "tokenizer.ggml.model", "tokenizer.ggml.eos_token_id"
NORMAL, USER_DEFINED, BYTE = 1, 4, 6
# llama.cpp treats some tokens as control tokens whatever their type. All of them look so.
_LOOKS_LIKE_CONTROL = re.compile(r"[_▁]?(?:<.+>|\[.+\])", re.DOTALL)
_LOOKS_LIKE_BYTE = re.compile("<0x([0-9A-F]{2})>")


def context_length(path: str) -> int:
    """Return the context in tokens that the model was made for; 0 if the file does not say."""
    try:
        value = values_of(path, ".context_length").get(".context_length")
    except (OSError, ValueError):  # llama.cpp says what is wrong with the file
        return 0
    return value if isinstance(value, int) else 0


def architecture(path: str) -> str:
    """Return the model's family, such as "llama"; "" if the file does not say."""
    try:
        value = values_of(path, "general.architecture").get("general.architecture")
    except (OSError, ValueError):  # llama.cpp says what is wrong with the file
        return ""
    return value if isinstance(value, str) else ""


def marked_tokens(path: str) -> dict[int, str]:
    """Return the id and the text of every token that may be no plain text.

    These are control tokens, unused tokens and the like. llama.cpp shows no text for them. Raises
    OSError or ValueError if the file cannot be read.
    """
    values = values_of(path, TOKENS, TYPES)
    tokens = values.get(TOKENS, [])
    types = values.get(TYPES) or [NORMAL] * len(tokens)
    return {
        token_id: text
        for token_id, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in (NORMAL, BYTE) or (kind == NORMAL and _LOOKS_LIKE_CONTROL.fullmatch(text))
    }


def vocabulary(path: str) -> tuple[list[bytes], int]:
    """Return the bytes of every token, and the id of the token that ends an answer.

    Control tokens begin with the byte 0xFF. Raises OSError or ValueError if the file cannot be
    read.
    """
    values = values_of(path, TOKENS, TYPES, MODEL, END)
    tokens = values.get(TOKENS, [])
    types = values.get(TYPES) or [NORMAL] * len(tokens)
    decode = _from_letters if values.get(MODEL) == "gpt2" else _from_pieces
    return [
        decode(text) if kind in (NORMAL, BYTE, USER_DEFINED) else b"\xff" + text.encode()
        for text, kind in zip(tokens, types, strict=True)
    ], values.get(END, 0)


def _letters() -> dict[str, int]:
    """Return GPT-2's letter for each byte: bytes that show nothing have letters above 255."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [each for each in range(256) if each not in shown]
    letters = {chr(each): each for each in shown}
    return letters | {chr(256 + number): each for number, each in enumerate(hidden)}


_BYTE_OF_LETTER = _letters()


def _from_letters(text: str) -> bytes:
    if not all(letter in _BYTE_OF_LETTER for letter in text):
        return text.encode()
    return bytes(map(_BYTE_OF_LETTER.__getitem__, text))


def _from_pieces(text: str) -> bytes:
    """Return a piece of SentencePiece's: the sign U+2581 is a space, <0x0A> a byte."""
    if found := _LOOKS_LIKE_BYTE.fullmatch(text):
        return bytes((int(found[1], 16),))
    return text.replace("\u2581", " ").encode()


def values_of(path: str, *endings: str) -> dict[str, Any]:
    """Return the first value whose name ends with each of the endings, if the file has one.

    Raises OSError if the file cannot be read, and ValueError if it is malformed.
    """
    try:
        with (
            Path(path).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
        ):
            return _Reader(m).values(endings)
    except (struct.error, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path} is not a complete GGUF file") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def values(self, endings: tuple[str, ...]) -> dict[str, Any]:
        """Return the values, and stop reading after the last of them."""
        if self._read("4s") != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._read("I")  # the version
        self._read("Q")  # the number of tensors
        found: dict[str, Any] = {}
        for _ in range(self._read("Q")):
            name = self._string()
            value = self._value(self._read("I"))
            if ending := next((each for each in endings if name.endswith(each)), None):
                found.setdefault(ending, value)
                if len(found) == len(endings):
                    break
        return found

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._read(NUMBERS[kind])
        kind, length = self._read("I"), self._read("Q")
        if kind in (STRING, ARRAY):
            return [self._value(kind) for _ in range(length)]
        layout = struct.Struct(f"<{length}{NUMBERS[kind]}")
        values = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return values

    def _read(self, layout: str) -> Any:
        (value,) = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return value

    def _string(self) -> str:
        length = self._read("Q")
        begin, self._at = self._at, self._at + length
        return self._data[begin : self._at].decode("utf-8", "replace")
