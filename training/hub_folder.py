"""Writes a checkpoint as a folder that Hugging Face transformers, vLLM and others can load."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from training.gguf_file import Checkpoint
from training.text.template import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS


def build_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Build a checkpoint's tokenizer. It puts <|endoftext|> in front of a text, like llama.cpp."""
    vocabulary = {token: index for index, token in enumerate(checkpoint.tokens)}
    merges = [(left, right) for left, right in (m.split(" ") for m in checkpoint.merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, vocabulary[END_OF_TEXT])],
    )
    return tokenizer


def write_hub_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"model.{name}": np.ascontiguousarray(weight, dtype=np.float16)
        for name, weight in checkpoint.weights.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    build_tokenizer(checkpoint).save(str(folder / "tokenizer.json"))
    end_of_text = checkpoint.tokens.index(END_OF_TEXT)
    stops = [end_of_text, checkpoint.tokens.index(END_OF_TURN)]
    _write_json(folder / "config.json", _config(checkpoint, end_of_text))
    _write_json(
        folder / "generation_config.json", {"bos_token_id": end_of_text, "eos_token_id": stops}
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": checkpoint.shape.context,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _config(checkpoint: Checkpoint, end_of_text: int) -> dict[str, object]:
    shape = checkpoint.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_base,
        "rms_norm_eps": shape.norm_epsilon,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float16",
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
