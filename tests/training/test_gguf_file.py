"""The shipped model, and the export from GGUF to a Hugging Face checkpoint."""

import json
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from training.gguf_file import (
    Checkpoint,
    hub_names,
    interleave,
    read_gguf,
    separate,
    write_gguf,
)
from training.hub_folder import build_tokenizer, write_hub_folder
from training.shape import MODEL, Shape
from training.text.template import CHAT_TEMPLATE, SPECIAL_TOKENS

SMALL = Shape(vocabulary=300, width=128, layers=2, heads=2, kv_heads=1, feed_forward=64)


@cache
def shipped() -> Checkpoint:
    return read_gguf(MODEL)


@cache
def shipped_tokenizer() -> Tokenizer:
    return build_tokenizer(shipped())


def small_checkpoint() -> Checkpoint:
    """Random weights in a small shape, with the shipped tokenizer's first tokens."""
    rng = np.random.default_rng(1)
    sizes = {"q_proj": 128, "k_proj": 64, "v_proj": 64, "o_proj": 128, "gate_proj": 64}
    weights = {}
    for name in hub_names(SMALL.layers).values():
        part = name.split(".")[-2]
        if part in ("norm", "input_layernorm", "post_attention_layernorm"):
            weights[name] = rng.normal(size=128).astype(np.float32)
        elif part == "embed_tokens":
            weights[name] = rng.normal(size=(300, 128)).astype(np.float16)
        elif part == "down_proj":
            weights[name] = rng.normal(size=(128, 64)).astype(np.float16)
        else:
            weights[name] = rng.normal(size=(sizes.get(part, 64), 128)).astype(np.float16)
    tokens = shipped().tokens[:300]
    merges = tuple(m for m in shipped().merges if m.replace(" ", "") in tokens)
    return Checkpoint(SMALL, weights, tokens, merges)


def test_the_shipped_model_is_small_enough_and_of_the_promised_size() -> None:
    assert MODEL.stat().st_size <= 12_000_000
    weights = shipped().weights
    num_parameters = sum(weight.size for weight in weights.values())
    assert num_parameters == shipped().shape.num_parameters
    assert 2_000_000 <= num_parameters <= 5_800_000


def test_the_shipped_model_says_what_it_is() -> None:
    fields = gguf.GGUFReader(MODEL).fields
    told = {
        key: fields[key].contents()
        for key in fields
        if key.startswith(("general.", "llama.")) or key == "tokenizer.chat_template"
    }
    assert told["general.architecture"] == "llama"
    assert told["general.name"] == "rill"
    assert told["general.license"] == "apache-2.0"
    assert told["llama.context_length"] >= 1024
    assert told["tokenizer.chat_template"] == CHAT_TEMPLATE


def test_the_shipped_tokenizer_is_named_and_typed_as_llama_cpp_wants_it() -> None:
    reader = gguf.GGUFReader(MODEL)

    def value(key: str) -> object:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        assert field is not None, key
        return field.contents()

    tokens = shipped().tokens
    assert (value("model"), value("pre")) == ("gpt2", "gpt-2")
    assert value("bos_token_id") == value("eos_token_id") == tokens.index("<|endoftext|>")
    assert value("eot_token_id") == tokens.index("<|end|>")
    assert value("add_bos_token") is True
    types = value("token_type")
    assert isinstance(types, list)
    control = {tokens[i] for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL}
    assert control == set(SPECIAL_TOKENS)


@given(st.text(max_size=200))
def test_any_text_comes_back_from_the_shipped_tokenizer_as_it_went_in(text: str) -> None:
    tokenizer = shipped_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["🦊 héllo 你好", "a  b   c\n\n\td", "it's 12,345 o'clock"])
def test_odd_text_comes_back_too_behind_one_endoftext(text: str) -> None:
    ids = shipped_tokenizer().encode(text).ids
    assert ids[0] == shipped().tokens.index("<|endoftext|>")
    assert shipped_tokenizer().decode(ids) == text


def test_special_tokens_are_one_id_each() -> None:
    encoding = shipped_tokenizer().encode(
        "<|user|>Hi<|end|><|assistant|>", add_special_tokens=False
    )
    assert encoding.tokens[0] == "<|user|>"
    assert encoding.tokens[-2:] == ["<|end|>", "<|assistant|>"]


def test_interleaving_turns_halves_into_neighbours_and_back() -> None:
    rows = np.arange(8).reshape(8, 1)  # two heads of four rows
    assert interleave(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert separate(interleave(rows, 2), 2).tolist() == rows.tolist()


def test_a_gguf_read_back_has_the_weights_that_were_written(tmp_path: Path) -> None:
    written = small_checkpoint()
    write_gguf(tmp_path / "small.gguf", written)
    read = read_gguf(tmp_path / "small.gguf")
    assert read.shape == written.shape
    assert (read.tokens, read.merges) == (written.tokens, written.merges)
    for name, weight in written.weights.items():
        np.testing.assert_array_equal(read.weights[name], weight)


def test_the_hugging_face_folder_has_everything_with_the_right_shapes(tmp_path: Path) -> None:
    write_hub_folder(tmp_path, shipped())
    shape = shipped().shape
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    weights = load_file(tmp_path / "model.safetensors")
    kv_width = shape.kv_heads * shape.head_width
    assert weights["model.embed_tokens.weight"].shape == (shape.vocabulary, shape.width)
    assert weights["model.layers.0.self_attn.k_proj.weight"].shape == (kv_width, shape.width)
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (shape.width, shape.feed_forward)
    assert len(weights) == 2 + 9 * shape.layers
    stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert [shipped().tokens[stop] for stop in stops] == ["<|endoftext|>", "<|end|>"]
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("Hello").ids == shipped_tokenizer().encode("Hello").ids
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert told["chat_template"] == CHAT_TEMPLATE
