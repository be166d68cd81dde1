"""The vocabulary in a GGUF file, with which grammars are compiled."""

import pytest

from penstock.engine.compiled import Vocabulary
from penstock.engine.llamacpp.gguf import _from_letters, _from_pieces, vocabulary
from penstock.engine.llamacpp.hub import find_model


def test_the_built_in_model_s_tokens_spell_any_text() -> None:
    tokens, end = vocabulary(str(find_model("rill")))
    assert tokens[end].startswith(b"\xff<")
    assert {bytes((each,)) for each in range(256)} <= set(tokens)
    text = "Grüße, 世界\n".encode()
    assert b"".join(tokens[each] for each in Vocabulary(tokens, end)(text)) == text


@pytest.mark.parametrize(
    ("spelled", "text"), [("Ġa", b" a"), ("Ċ", b"\n"), ("Ã¼", "ü".encode()), ("世", "世".encode())]
)
def test_letters_of_gpt_2_stand_for_bytes(spelled: str, text: bytes) -> None:
    assert _from_letters(spelled) == text


@pytest.mark.parametrize(("spelled", "text"), [("▁a", b" a"), ("<0x0A>", b"\n"), ("<0x", b"<0x")])
def test_pieces_of_sentencepiece_stand_for_text(spelled: str, text: bytes) -> None:
    assert _from_pieces(spelled) == text
