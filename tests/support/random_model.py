"""Models with random weights for tests of what does not depend on the answers: prompts and caches.

A model has the vocabulary of another file and a context of its own. It is so small that a prompt of
30,000 tokens takes it seconds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from tests.support.smollm2 import CONTROL_TOKEN, metadata_of

SIZE, HEADS, INNER = 64, 2, 128
SPREAD = 0.02


def random_model(
    path: Path, vocabulary: Path, *, context: int, template: str, more_tokens: Sequence[str] = ()
) -> Path:
    """Write a GGUF file with the tokenizer of the file `vocabulary`, and return its path.

    `more_tokens` are control tokens to add to it.
    """
    own = metadata_of(vocabulary)
    own["tokenizer.ggml.tokens"] += more_tokens
    own["tokenizer.ggml.token_type"] += [CONTROL_TOKEN] * len(more_tokens)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(SIZE // HEADS)
    writer.add_chat_template(template)
    for name, value in own.items():
        if name.startswith("tokenizer.ggml."):
            _add(writer, name, value)
    _add_tensors(writer, len(own["tokenizer.ggml.tokens"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, name: str, value: object) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        raise TypeError(f"{name} has another type")


def _add_tensors(writer: GGUFWriter, num_tokens: int) -> None:
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (num_tokens, SIZE),
        "output": (num_tokens, SIZE),  # with the embeddings, it would only repeat the last token
        **{f"blk.0.attn_{each}": (SIZE, SIZE) for each in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{each}": (INNER, SIZE) for each in ("gate", "up")},
        "blk.0.ffn_down": (SIZE, INNER),
    }
    for name, shape in shapes.items():
        values = random.normal(0, SPREAD, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(SIZE, np.float32))
