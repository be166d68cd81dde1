"""Reads and writes rill as GGUF: its metadata, tensor names, and the order of rows in q and k.

Hugging Face rotates the pair (i, i + half) of a head by one angle. llama.cpp's "llama" architecture
rotates the neighbours (2i, 2i + 1). So the rows of q and k are reordered in both directions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from training.shape import Shape
from training.text.template import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS

Array = npt.NDArray[Any]

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model: its shape, its weights under Hugging Face names, and its tokenizer."""

    shape: Shape
    weights: Mapping[str, Array]
    tokens: tuple[str, ...]
    merges: tuple[str, ...]


def hub_names(layers: int) -> dict[str, str]:
    """Return Hugging Face parameter names, without the leading `model.`, by GGUF tensor name."""
    names = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    for layer in range(layers):
        for ours, theirs in LAYER_NAMES.items():
            names[f"blk.{layer}.{ours}.weight"] = f"layers.{layer}.{theirs}.weight"
    return names


def interleave(weight: Array, heads: int) -> Array:
    """Reorder the rows of q or k from halves (Hugging Face) to neighbours (GGUF)."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def separate(weight: Array, heads: int) -> Array:
    """Undo `interleave`."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def rotated_heads(name: str, shape: Shape) -> int | None:
    """Return how many heads the rows of a tensor contain, None if it is neither q nor k."""
    if ".attn_q." in name:
        return shape.heads
    return shape.kv_heads if ".attn_k." in name else None


def tokenizer_parts(tokenizer_json: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens in the order of their ids, and the merges as "left right"."""
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    by_id = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
    merges = (m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"])
    return tuple(token for token, _ in by_id), tuple(merges)


def write_gguf(path: Path, checkpoint: Checkpoint) -> None:
    """Write f16 matrices and f32 norms. The file gets its name only when it is complete."""
    fresh = path.with_suffix(".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(fresh, "llama")
    _add_metadata(writer, checkpoint.shape)
    _add_tokenizer(writer, checkpoint)
    for name, theirs in hub_names(checkpoint.shape.layers).items():
        weight = np.asarray(checkpoint.weights[theirs], dtype=np.float32)
        heads = rotated_heads(name, checkpoint.shape)
        if heads is not None:
            weight = interleave(weight, heads)
        writer.add_tensor(name, weight.astype(np.float16) if weight.ndim == 2 else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fresh.replace(path)


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_type("model")
    writer.add_name("rill")
    writer.add_description("A very small model of little stories, made to show streaming.")
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    tokens = checkpoint.tokens
    types = [
        gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL
        for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens))
    writer.add_token_types(types)
    writer.add_token_merges(list(checkpoint.merges))
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eot_token_id(tokens.index(END_OF_TURN))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def read_gguf(path: Path) -> Checkpoint:
    """Read a GGUF that `write_gguf` wrote. Raises ValueError if a field is missing."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise ValueError(f"{path} has no {key}: it was not written by this recipe")
        return field.contents()

    shape = Shape(
        vocabulary=len(value("tokenizer.ggml.tokens")),
        width=value("llama.embedding_length"),
        layers=value("llama.block_count"),
        heads=value("llama.attention.head_count"),
        kv_heads=value("llama.attention.head_count_kv"),
        feed_forward=value("llama.feed_forward_length"),
        context=value("llama.context_length"),
        rope_base=value("llama.rope.freq_base"),
        norm_epsilon=round(value("llama.attention.layer_norm_rms_epsilon"), 12),
    )
    names = hub_names(shape.layers)
    weights: dict[str, Array] = {}
    for tensor in reader.tensors:
        heads = rotated_heads(tensor.name, shape)
        weight = np.array(tensor.data)
        weights[names[tensor.name]] = weight if heads is None else separate(weight, heads)
    return Checkpoint(
        shape,
        weights,
        tuple(value("tokenizer.ggml.tokens")),
        tuple(value("tokenizer.ggml.merges")),
    )
