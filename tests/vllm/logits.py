"""Prints a model's own logits of two tokens: transformers in float32, without an engine.

`python -m tests.vllm.logits MODEL` reads lines of JSON, [ids so far, one token, the other token],
and writes a line with the logits of both tokens for each.
"""

import json
import sys


def main() -> None:
    """Answer every line of standard input."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    for line in sys.stdin:
        ids, one, other = json.loads(line)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        print(json.dumps([float(logits[one]), float(logits[other])]))


if __name__ == "__main__":
    main()
