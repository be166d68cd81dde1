"""Two models in Hugging Face form, made here: nothing is downloaded.

`python -m tests.vllm.models FOLDER` makes them in a process of its own: transformers and torch say
much, and pytest takes every warning for an error.
"""

import subprocess
import sys
from pathlib import Path

CONTEXT = 2048


def make_models(folder: Path) -> Path:
    """The folders `rill`, from the GGUF that Penstock ships, and `opt`."""
    export = ["training.export", "hf", "--out", str(folder / "rill")]
    for arguments in (export, ["tests.vllm.models", str(folder)]):
        subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True)
    return folder


def make_opt(folder: Path, tokenizer_from: Path) -> None:
    """A small random model of the notebook's family (facebook/opt), with rill's vocabulary.

    Like the real ones it has no chat template, and its prompts begin with a token of their own.
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
        init_std=0.3,  # logits far apart: greedy choices are no ties
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = OPTForCausalLM(config).eval()
    with torch.no_grad():  # its answers never end by themselves: this token's logit is always 0
        model.get_input_embeddings().weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make_opt(Path(sys.argv[1]) / "opt", Path(sys.argv[1]) / "rill")
