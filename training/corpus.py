"""The token ids of each split, packed for the trainer and cached in build/.

Documents follow one another without padding, separated by <|endoftext|>.
"""

import time
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.text.document import Kind, documents
from training.text.split import Split

Tokens = npt.NDArray[np.uint16]

TRAIN_SEED = 1
HELD_OUT_SEED = 2
HELD_OUT_TOKENS_PER_KIND = 65_536
BATCH = 1000


def pack(
    tokenizer: Tokenizer, seed: int, split: Split, num_tokens: int, kind: Kind | None = None
) -> Tokens:
    """Generate and tokenize documents until there are `num_tokens` ids."""
    packed = np.empty(num_tokens, dtype=np.uint16)
    filled = 0
    source = documents(seed, split, kind=kind)
    while filled < num_tokens:
        texts = [document.text for document in islice(source, BATCH)]
        for encoding in tokenizer.encode_batch(texts):
            ids = encoding.ids[: num_tokens - filled]
            packed[filled : filled + len(ids)] = ids
            filled += len(ids)
    return packed


def train_tokens(
    tokenizer: Tokenizer, folder: Path, num_tokens: int, kind: Kind | None = None
) -> Tokens:
    """Return the training split, or one kind of it, from `folder`; make it if it is missing."""
    which = f"-{kind.value}" if kind else ""
    path = folder / f"train-{TRAIN_SEED}-{num_tokens}{which}.npy"
    if not path.exists():
        begin = time.monotonic()
        np.save(path, pack(tokenizer, TRAIN_SEED, Split.TRAIN, num_tokens, kind))
        print(f"{path}: {num_tokens:,} tokens in {time.monotonic() - begin:.0f} s", flush=True)
    tokens: Tokens = np.load(path, mmap_mode="r")
    return tokens


def held_out_tokens(tokenizer: Tokenizer) -> dict[Kind, Tokens]:
    """Return the held-out split: a fixed number of tokens of each kind."""
    return {
        kind: pack(tokenizer, HELD_OUT_SEED, Split.HELD_OUT, HELD_OUT_TOKENS_PER_KIND, kind)
        for kind in Kind
    }
