"""Makes four models in Hugging Face form, without downloads.

`python -m tests.vllm.models FOLDER` makes the model `opt` in another process, because transformers
and torch emit warnings and pytest turns every warning into an error.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.templates import CALL, PICKY, REASONING

CONTEXT = 2048
OPT_SAMPLING = {"temperature": 0.7, "top_k": 33, "min_p": 0.05, "repetition_penalty": 1.1}
"""The sampling in the generation_config.json of `opt`."""
THINKER_TOKENS = {CALL: "<tool_call>", "`": "</tool_call>", "^": "<think>", "@": "</think>"}
"""Tokens that rill rarely needs → the special tokens that replace them in `thinker`."""
END_OF_THOUGHT_ID = 36


def make_models(folder: Path) -> Path:
    """Make the models `rill` (from Penstock's own GGUF), `opt`, `thinker` and `strict`."""
    export = ["training.export", "hf", "--out", str(folder / "rill")]
    for arguments in (export, ["tests.vllm.models", str(folder)]):
        subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True)
    make_thinker(folder / "thinker", folder / "rill")
    make_strict(folder / "strict", folder / "rill")
    return folder


def make_opt(folder: Path, tokenizer_from: Path) -> None:
    """Make a small random model of the family facebook/opt, with rill's vocabulary.

    Like the real models it has no chat template, and its prompts begin with a special token.
    """
    import torch
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.chat_template = None
    torch.manual_seed(350)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        init_std=0.3,  # logits far apart, so greedy choices are no ties
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = OPTForCausalLM(config).eval()
    with torch.no_grad():  # answers never end by themselves: the logit of this token is 0
        model.get_input_embeddings().weight[tokenizer.eos_token_id] = 0
    model.generation_config.update(**OPT_SAMPLING, do_sample=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_thinker(folder: Path, rill: Path) -> None:
    """Make a copy of rill whose template reasons and calls tools, with special tokens as marks.

    rill has learned neither, so tests must force it.
    """
    shutil.copytree(rill, folder)
    tokenizer = json.loads((rill / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for before, mark in THINKER_TOKENS.items():
        vocabulary[mark] = vocabulary.pop(before)
        special = {**tokenizer["added_tokens"][0], "id": vocabulary[mark], "content": mark}
        tokenizer["added_tokens"].append(special)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((rill / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["additional_special_tokens"] += THINKER_TOKENS.values()
    template = REASONING.replace(CALL, "<tool_call>").replace("`", "</tool_call>")
    config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def make_strict(folder: Path, rill: Path) -> None:
    """Make a copy of rill whose template refuses many conversations."""
    shutil.copytree(rill, folder)
    config = json.loads((rill / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = PICKY
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    make_opt(Path(sys.argv[1]) / "opt", Path(sys.argv[1]) / "rill")
