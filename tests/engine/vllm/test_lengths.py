"""The least lengths of texts for tokenizers of Hugging Face, which vLLM uses."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from penstock.engine.vllm.lengths import lengths_of_file
from tests.support.texts import TEXTS

MANY = 10**9
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def vocabulary(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def byte_level(normalizer: Any = None) -> Tokenizer:
    tokens = vocabulary(*ALPHABET, "th", "the", "ĠĠ", "ĠĠĠĠ", "aa", "aaaa", "Ã©", "==", "====")
    merges = [("t", "h"), ("th", "e"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("a", "a"), ("aa", "aa")]
    merges += [("Ã", "©"), ("=", "="), ("==", "==")]
    tokenizer = Tokenizer(models.BPE(tokens, merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece() -> Tokenizer:
    tokens = vocabulary("<unk>", *BYTES, "▁", "t", "h", "e", "a", "aa", "▁▁", "▁t", "th", "▁th")
    merges = [("a", "a"), ("▁", "▁"), ("▁", "t"), ("t", "h"), ("▁t", "h")]
    model = models.BPE(tokens, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def stripping() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True, lstrip=True, special=True)])
    return tokenizer


KEEPING = {
    "byte level": byte_level(),
    "composed": byte_level(normalizers.NFC()),
    "decomposed": byte_level(normalizers.NFKD()),
    "sentence piece": sentence_piece(),
    "stripping": stripping(),
}


def lengths(tokenizer: Tokenizer) -> Any:
    return lengths_of_file(json.loads(tokenizer.to_str()))


@pytest.mark.parametrize("name", KEEPING)
@given(texts=st.lists(st.one_of(st.text(), st.sampled_from((*TEXTS, "<|end|>   ", "e\u0301")))))
def test_no_text_has_fewer_tokens(name: str, texts: list[str]) -> None:
    text = "".join(texts)
    assert lengths(KEEPING[name]).least(text, MANY) <= len(KEEPING[name].encode(text).ids)


@pytest.mark.parametrize("name", KEEPING)
def test_a_long_text_has_many(name: str) -> None:
    assert lengths(KEEPING[name]).least("the " * 10_000, MANY) > 5_000


def lossy() -> dict[str, Tokenizer]:
    lower, both = normalizers.Lowercase(), normalizers.Sequence([normalizers.NFC()] * 2)
    found = {"lower": byte_level(lower), "two forms": byte_level(both)}
    found["words"] = Tokenizer(models.WordPiece(vocabulary("[UNK]", "the"), unk_token="[UNK]"))
    found["no bytes"] = Tokenizer(models.BPE(vocabulary("<unk>", "a"), [], unk_token="<unk>"))
    found["strip"] = byte_level(normalizers.Strip())
    removing = byte_level()
    removing.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
    )
    return found | {"removing": removing}


@pytest.mark.parametrize("name", lossy())
def test_a_tokenizer_that_drops_something_counts_nothing(name: str) -> None:
    assert lengths(lossy()[name]).least("the " * 10_000, MANY) == 0
