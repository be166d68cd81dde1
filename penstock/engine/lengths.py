"""The least number of tokens that a text can have, without tokenising it.

In: the bytes of every token of a vocabulary, and a text. Out: a number of tokens that the text has
at least. Tokenising megabytes takes seconds, and this takes milliseconds, so an engine refuses what
cannot fit before it tokenises. Not known here: the tokenizer.

A byte is at least 1/n of a token, if the longest token that contains this byte has n bytes: the
parts of one token then add up to at most 1.
"""

import math
import unicodedata
from collections.abc import Iterable
from typing import Literal

BLOCK_CHARACTERS = 65_536
# Lengths are rounded up to one of these, so that a text is read only a few times.
ROUNDED = tuple(sorted({0} | {2**n for n in range(24)} | {3 * 2**n for n in range(22)}))
WHITE_SPACE = b" \t\n\v\f\r"


Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
# Characters at a block's ends may combine with those beside it.
TOKENS_AT_ENDS = 8


class Lengths:
    """The least lengths of texts in tokens, for a vocabulary of these `tokens`.

    `form` is the form of Unicode into which the tokenizer brings a text before it looks for tokens.
    `strips`: it may drop white space. Bytes that no token contains count as nothing.
    """

    def __init__(
        self, tokens: Iterable[bytes], *, form: Form | None = None, strips: bool = False
    ) -> None:
        longest = [0] * 256
        for token in tokens:
            for byte in set(token):
                longest[byte] = max(longest[byte], len(token))
        if strips:
            for byte in WHITE_SPACE:
                longest[byte] = 0
        self._form = form
        self._classes: dict[int, bytes] = {}
        """A length of tokens → the bytes whose longest token is not of this length."""
        rounded = [next(n for n in ROUNDED if n >= each) for each in longest]
        for length in sorted(set(rounded) - {0}):
            others = bytes(byte for byte in range(256) if rounded[byte] != length)
            self._classes[length] = others

    def least(self, text: str, enough: int) -> int:
        """Return how many tokens the text has at least; stop counting at `enough`."""
        total = 0.0
        for begin in range(0, len(text), BLOCK_CHARACTERS):
            total += self._least_of_block(text[begin : begin + BLOCK_CHARACTERS])
            if total >= enough:
                break
        return math.floor(total)

    def _least_of_block(self, block: str) -> float:
        if self._form is not None:
            block = unicodedata.normalize(self._form, block)
        utf8 = block.encode("utf-8", "replace")
        total = 0.0
        for length, others in self._classes.items():
            total += len(utf8.translate(None, others)) / length
        return total if self._form is None else max(0.0, total - TOKENS_AT_ENDS)
