"""Reads log probabilities in the three forms of upstreams: OpenAI's two, and llama.cpp's own.

In: what an upstream sent, of which anything may be wrong. Out: `TokenLogprob`s, or GarbageError, or
msgspec's error while it is decoded.
"""

import re
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from penstock.engine.llamacpp.answers import LOWEST_LOGPROB
from penstock.engine.remote.failures import GarbageError
from penstock.events import TokenLogprob

# Rounding makes the logarithm of a probability of 1 a little more than 0.
HIGHEST_LOGPROB = 0.01
# OpenAI's name for a token that is no whole character.
BYTES_NAME = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")

Name = Annotated[str, Meta(max_length=4096)]
Byte = Annotated[int, Meta(ge=0, le=255)]


class Ranked(msgspec.Struct):
    """A token and its log probability, in the form of chats."""

    token: Name = ""
    logprob: float = LOWEST_LOGPROB
    utf8: Annotated[tuple[Byte, ...], Meta(max_length=4096)] | None = msgspec.field(
        name="bytes", default=None
    )
    id: int | None = None

    @property
    def text(self) -> bytes:
        """Return the token's bytes; llama.cpp reports control tokens without text."""
        if self.utf8:
            return bytes(self.utf8)
        if not self.token and self.id is not None:
            return b"token_id:%d" % self.id
        return bytes_of(self.token)


class Chosen(Ranked):
    """A generated token, with the likeliest tokens at its place."""

    top_logprobs: tuple[Ranked, ...] | None = None


class Logprobs(msgspec.Struct):
    """The log probabilities of an event.

    Chats have `content`, and so have completions of llama.cpp's server. Other completions have
    lists with an item for each token.
    """

    content: tuple[Chosen, ...] | None = None
    tokens: tuple[Name, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[Name, float] | None, ...] | None = None

    def words(self, num_top: int) -> tuple[TokenLogprob, ...]:
        """Return a `TokenLogprob` for each token, with the `num_top` likeliest.

        Raises GarbageError.
        """
        if self.content is not None:
            return words_of(self.content, num_top)
        tokens, values = self.tokens or (), self.token_logprobs or ()
        tops = self.top_logprobs or (None,) * len(tokens)
        if not len(tokens) == len(values) == len(tops):
            raise GarbageError("its log probabilities do not belong to its tokens")
        return tuple(
            TokenLogprob(
                bytes_of(token),
                checked(value),
                likeliest(((bytes_of(name), each) for name, each in (top or {}).items()), num_top),
            )
            for token, value, top in zip(tokens, values, tops, strict=True)
        )


def words_of(tokens: Iterable[Chosen], num_top: int) -> tuple[TokenLogprob, ...]:
    """Return a `TokenLogprob` for each token, with the `num_top` likeliest. Raises GarbageError."""
    return tuple(
        TokenLogprob(
            each.text,
            checked(each.logprob),
            likeliest(((top.text, top.logprob) for top in each.top_logprobs or ()), num_top),
        )
        for each in tokens
    )


def likeliest(
    tokens: Iterable[tuple[bytes, float]], num_top: int
) -> tuple[tuple[bytes, float], ...]:
    """Return the `num_top` likeliest of the tokens, the likeliest first. Raises GarbageError."""
    if not num_top:
        return ()
    ranked = sorted(((text, checked(value)) for text, value in tokens), key=lambda each: -each[1])
    return tuple(ranked[:num_top])


def checked(value: float | None) -> float:
    """Return a log probability within bounds. Raises GarbageError if it is none."""
    if value is None or not value <= HIGHEST_LOGPROB:
        raise GarbageError("it sent a number that is no log probability")
    return max(min(value, 0.0), LOWEST_LOGPROB)


def bytes_of(name: str) -> bytes:
    """Return the bytes of a token that is named by its text, or by its bytes."""
    if name.startswith("bytes:") and (found := BYTES_NAME.fullmatch(name)):
        return bytes.fromhex(found[1].replace("\\x", ""))
    return name.encode("utf-8", "replace")
