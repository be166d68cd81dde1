"""Compiles grammars with llguidance, the library with which an engine enforces them.

In: a grammar in llguidance's own form, and the model's vocabulary. Out: the compiled grammar, or
InvalidSchemaError. Not known here: schemas, tools, engines. Call it with a client's grammar only in
a process with limits (see `process.forks`): llguidance's own limits do not bound every grammar.
"""

import random
import time
from collections.abc import Sequence

from llguidance import LLMatcher, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper

MAX_COMPILE_S = 0.5
"""How much processor time the whole grammar of an answer may take. An engine compiles it again."""
NUM_TRIED = 16
"""How many tokens to generate when a grammar is tried."""


class InvalidSchemaError(Exception):
    """The schema cannot be enforced; the message says why."""


class TooComplexError(InvalidSchemaError):
    """Compiling the grammar takes too much time or memory."""

    def __init__(self) -> None:
        super().__init__("compiling takes too much time or memory")


class Vocabulary:
    """A model's tokens as bytes; control tokens begin with the byte 0xFF, and no text has them."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self._ids_of_bytes = {text[0]: i for i, text in enumerate(tokens) if len(text) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Return tokens that spell a text: one for each byte that is a token."""
        return [self._ids_of_bytes[each] for each in text if each in self._ids_of_bytes]

    def use(self) -> None:
        """Compile grammars for these tokens from now on."""
        global _tokenizer
        _tokenizer = LLTokenizer(TokenizerWrapper(self))
        self.tokens = ()  # llguidance has them


# Whether llguidance understands a grammar hardly depends on the tokens. Its costs do.
_tokenizer = LLTokenizer("byte")
_BYTES = _tokenizer


def compiled(grammar: str) -> LLMatcher:
    """Return a compiled grammar, perhaps with an error."""
    matcher = LLMatcher(_tokenizer, grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some errors appear only at the first token
    return matcher


def compiled_for_bytes(grammar: str) -> LLMatcher:
    """Return a compiled grammar whose tokens are the 256 bytes."""
    return LLMatcher(_BYTES, grammar, log_level=0)


def try_out(grammar: str) -> None:
    """Compile the grammar of an answer and generate some tokens, as an engine will.

    Raises InvalidSchemaError if that fails, and TooComplexError if it takes too long.
    """
    begin = time.process_time()
    if generate_some(grammar).is_error():
        raise InvalidSchemaError("it is not valid, or it is too large")
    if time.process_time() - begin > MAX_COMPILE_S:
        raise TooComplexError


def generate_some(grammar: str) -> LLMatcher:
    """Compile a grammar and generate some tokens. Return the matcher, perhaps with an error."""
    matcher = compiled(grammar)
    generator = random.Random(0)  # noqa: S311 - no secret
    for _ in range(NUM_TRIED):
        if matcher.is_error() or matcher.is_stopped():
            break
        token = _any_of(matcher.compute_bitmask(), generator)
        if token is None or not matcher.consume_token(token):
            break
    return matcher


def _any_of(mask: bytes, generator: random.Random) -> int | None:
    """Return any token that the mask allows."""
    for start in (generator.randrange(len(mask)), 0):
        if rest := mask[start:].lstrip(b"\0"):
            at = len(mask) - len(rest)
            bits = [bit for bit in range(8) if mask[at] >> bit & 1]
            return at * 8 + generator.choice(bits)
    return None
