"""What the model itself says about two tokens: transformers, in float32, without any engine.

`python -m tests.vllm.logits MODEL` reads lines of JSON, [ids so far, one token, the other], and
writes for each the two tokens' logits.
"""

import json
import sys


def main() -> None:
    """See above."""
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
