"""The least lengths of texts, for a tokenizer of Hugging Face.

In: a tokenizer as transformers loads it. Out: its `Lengths`, which count nothing if it is not
certain that the tokens of a text contain all of it. Not known here: vLLM.

Format: https://huggingface.co/docs/tokenizers/api/tokenizer
"""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from penstock.engine.lengths import Form, Lengths

FORMS = get_args(Form)
# The parts of a tokenizer that keep every byte of a text, beside those above.
KEEPS = ("Prepend", "Replace", "ByteLevel", "Metaspace", "Split", "Digits", "Sequence")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "\u2581"
"""Stands for a space in the tokens of SentencePiece."""


def lengths_of(tokenizer: Any) -> Lengths:
    """Return the lengths in this tokenizer's tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return Lengths(()) if backend is None else lengths_of_file(json.loads(backend.to_str()))


def lengths_of_file(tokenizer: dict[str, Any]) -> Lengths:
    """Return the lengths for the content of a `tokenizer.json`."""
    model = tokenizer["model"]
    parts = [*_parts(tokenizer["normalizer"]), *_parts(tokenizer["pre_tokenizer"])]
    is_byte_level = any(part["type"] == "ByteLevel" for part in parts)
    forms = [part["type"] for part in parts if part["type"] in FORMS]
    if (
        model["type"] != "BPE"
        or not (is_byte_level or model.get("byte_fallback"))
        or len(forms) > 1
        or not all(map(_keeps, parts))
    ):
        return Lengths(())
    added = [token["content"].encode() for token in tokenizer["added_tokens"]]
    strips = any(token["lstrip"] or token["rstrip"] for token in tokenizer["added_tokens"])
    bytes_of = _byte_level if is_byte_level else _sentence_piece
    tokens = [*map(bytes_of, model["vocab"]), *added]
    return Lengths(tokens, form=forms[0] if forms else None, strips=strips)


def _parts(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield a normaliser or pre-tokenizer, and what it consists of."""
    if part is None:
        return
    yield part
    for each in part.get("normalizers") or part.get("pretokenizers") or ():
        yield from _parts(each)


def _keeps(part: dict[str, Any]) -> bool:
    """Return True if this part drops nothing of a text."""
    if part["type"] == "Split":
        return bool(part["behavior"] != "Removed")
    if part["type"] == "Replace":
        return bool(part["content"] == SPACE and part["pattern"] == {"String": " "})
    return part["type"] in KEEPS or part["type"] in FORMS


def _sentence_piece(token: str) -> bytes:
    found = _BYTE.fullmatch(token)
    return bytes.fromhex(found[1]) if found else token.replace(SPACE, " ").encode()


def _byte_level(token: str) -> bytes:
    return bytes(_BYTES[character] for character in token if character in _BYTES)


def _bytes_by_character() -> dict[str, int]:
    """Return the byte for which each character stands in tokens of the kind ByteLevel."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    characters = {chr(byte): byte for byte in shown}
    return characters | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_BYTES = _bytes_by_character()
