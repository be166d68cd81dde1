"""The least number of tokens of a text."""

import functools
import time

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.lengths import BLOCK_CHARACTERS, Lengths
from penstock.engine.llamacpp.hub import find_model
from penstock.engine.llamacpp.prompts import lengths_of
from penstock.engine.llamacpp.vocabulary import Vocabulary
from tests.support import smollm2
from tests.support.texts import TEXTS

TOKENS = (b"a", b"b", b"ab", b" ", b"        ", b"aaa")
MANY = 10**9
WORDS = st.lists(st.sampled_from((*TEXTS, "telecommunications", "the ", "\t", "e")), max_size=20)


@functools.cache
def models() -> list[tuple[Lengths, Vocabulary]]:
    found = [Vocabulary(str(path)) for path in (find_model("rill"), smollm2.find())]
    return [(lengths_of(vocabulary), vocabulary) for vocabulary in found]


@given(st.one_of(st.text(), WORDS.map("".join)))
def test_no_text_has_fewer_tokens(text: str) -> None:
    for lengths, vocabulary in models():
        found = len(vocabulary.ids_of(text))
        assert lengths.least(text, MANY) <= found


def test_every_token_counts_as_one_at_most() -> None:
    for lengths, vocabulary in models():
        for token_id in range(vocabulary.size):
            text = vocabulary.bytes_of(token_id).decode("utf-8", "ignore")
            assert lengths.least(text, MANY) <= 1


def test_a_byte_counts_by_the_longest_token_that_contains_it() -> None:
    lengths = Lengths(TOKENS)
    assert lengths.least("ab" * 30, MANY) == 30 / 3 + 30 / 2
    assert lengths.least("b" * 30, MANY) == 15
    assert lengths.least("a" * 30, MANY) == 10
    assert lengths.least(" " * 30, MANY) == 30 // 8
    assert lengths.least("xyz", MANY) == 0
    assert Lengths(TOKENS, strips=True).least(" " * 30, MANY) == 0
    assert Lengths((b"e", "é".encode()), form="NFC").least("e\u0301" * 30, MANY) == 30 - 8
    assert Lengths(()).least("b" * 30, MANY) == 0


def test_counting_stops_at_enough() -> None:
    lengths = Lengths(TOKENS)
    assert lengths.least("b" * 10 * BLOCK_CHARACTERS, 5) == BLOCK_CHARACTERS // 2


def test_counting_takes_a_fraction_of_the_time_of_tokenising() -> None:
    text = "Once upon a time, there was a cat. " * 30_000
    (lengths, vocabulary) = models()[-1]
    began = time.process_time()
    lengths.least(text, MANY)
    counted = time.process_time()
    vocabulary.ids_of(text)
    assert (counted - began) * 10 < time.process_time() - counted
