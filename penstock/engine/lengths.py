"""The least number of tokens that a text can have, without tokenising it.

In: the bytes of every token of a vocabulary, and a text. Out: a number of tokens that the text has
at least. Tokenising megabytes takes seconds, and this takes milliseconds, so an engine refuses what
cannot fit before it tokenises. Not known here: the tokenizer.

A byte is at least 1/n of a token, if the longest token that contains this byte has n bytes: the
parts of one token then add up to at most 1.
"""

import math
from collections.abc import Iterable

BLOCK_CHARACTERS = 65_536
# Lengths are rounded up to one of these, so that a text is read only a few times.
ROUNDED = tuple(sorted({2**n for n in range(13)} | {3 * 2**n for n in range(12)}))
WHITE_SPACE = b" \t\n\v\f\r"


class Lengths:
    """The least lengths of texts in tokens, for a vocabulary of these `tokens`.

    `shrinks`: the tokenizer may make a text this many times shorter before it looks for tokens.
    `strips`: it may drop white space. Bytes that no token contains count as nothing.
    """

    def __init__(self, tokens: Iterable[bytes], *, shrinks: int = 1, strips: bool = False) -> None:
        longest = [0] * 256
        for token in tokens:
            for byte in set(token):
                longest[byte] = max(longest[byte], len(token))
        if strips:
            for byte in WHITE_SPACE:
                longest[byte] = 0
        self._shrinks = shrinks
        self._classes: dict[int, bytes] = {}
        """A length of tokens → the bytes whose longest token is not of this length."""
        rounded = [next((n for n in ROUNDED if n >= each), 0) if each else 0 for each in longest]
        for length in sorted(set(rounded) - {0}):
            others = bytes(byte for byte in range(256) if rounded[byte] != length)
            self._classes[length] = others

    def least(self, text: str, enough: int) -> int:
        """Return how many tokens the text has at least; stop counting at `enough`."""
        total = 0.0
        for begin in range(0, len(text), BLOCK_CHARACTERS):
            block = text[begin : begin + BLOCK_CHARACTERS].encode("utf-8", "replace")
            for length, others in self._classes.items():
                total += len(block.translate(None, others)) / (length * self._shrinks)
            if total >= enough:
                break
        return math.floor(total)
