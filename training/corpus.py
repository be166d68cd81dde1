"""The token ids of each split, packed for the trainer and cached in build/.

Documents follow one another without padding, separated by <|endoftext|>. The training split is
written in parts, each with a seed of its own, by as many processes as there are cores. The number
of processes does not change the text.
"""

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.text.document import Kind, documents
from training.text.names import with_new_names
from training.text.split import Split

Tokens = npt.NDArray[np.uint16]

TRAIN_SEED = 1
PART_TOKENS = 1_000_000
SEED_STEP = 1000
HELD_OUT_SEED = 2
HELD_OUT_TOKENS_PER_KIND = 65_536
BATCH = 1000


def pack(
    tokenizer: Tokenizer, seed: int, split: Split, num_tokens: int, kind: Kind | None = None
) -> Tokens:
    """Generate and tokenize documents until there are `num_tokens` ids.

    Users in the training split may get new names. The held-out split and the tokenizer's text keep
    the names of the lists. So the vocabulary stays as it is, and the replicas of two releases can
    continue each other's streams.
    """
    names = random.Random(f"names/{seed}")
    packed = np.empty(num_tokens, dtype=np.uint16)
    filled = 0
    source = documents(seed, split, kind=kind)
    while filled < num_tokens:
        texts = [document.text for document in islice(source, BATCH)]
        if split is Split.TRAIN:
            texts = [with_new_names(text, names) for text in texts]
        for encoding in tokenizer.encode_batch(texts):
            ids = encoding.ids[: num_tokens - filled]
            packed[filled : filled + len(ids)] = ids
            filled += len(ids)
    return packed


def pack_train_part(tokenizer: Tokenizer, kind: Kind | None, number: int) -> Tokens:
    """Write one part of the training split. Part 0 has the seed 1, part 1 has 1001, and so on."""
    seed = TRAIN_SEED + number * SEED_STEP
    return pack(tokenizer, seed, Split.TRAIN, PART_TOKENS, kind)


def pack_train(tokenizer: Tokenizer, num_tokens: int, kind: Kind | None) -> Iterator[Tokens]:
    """Write the parts of the training split side by side, and yield them in order."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core already writes a part
    parts = range(-(-num_tokens // PART_TOKENS))
    with ProcessPoolExecutor() as pool:
        yield from pool.map(partial(pack_train_part, tokenizer, kind), parts)


def train_tokens(
    tokenizer: Tokenizer, folder: Path, num_tokens: int, kind: Kind | None = None
) -> Tokens:
    """Return the training split, or one kind of it, from `folder`; make it if it is missing."""
    which = f"-{kind.value}" if kind else ""
    path = folder / f"train-{TRAIN_SEED}-{num_tokens}{which}.npy"
    if not path.exists():
        begin = time.monotonic()
        parts = list(pack_train(tokenizer, num_tokens, kind))
        np.save(path, np.concatenate(parts)[:num_tokens])
        print(f"{path}: {num_tokens:,} tokens in {time.monotonic() - begin:.0f} s", flush=True)
    tokens: Tokens = np.load(path, mmap_mode="r")
    return tokens


def held_out_tokens(tokenizer: Tokenizer) -> dict[Kind, Tokens]:
    """Return the held-out split: a fixed number of tokens of each kind."""
    return {
        kind: pack(tokenizer, HELD_OUT_SEED, Split.HELD_OUT, HELD_OUT_TOKENS_PER_KIND, kind)
        for kind in Kind
    }
