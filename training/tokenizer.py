"""Trains the byte-level BPE tokenizer: `python -m training.tokenizer --help`.

Its alphabet has every byte, so any text survives encoding and decoding unchanged. llama.cpp calls
the same pre-tokenizer "gpt-2".
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.shape import BUILD, Shape
from training.text.document import documents
from training.text.split import Split
from training.text.template import SPECIAL_TOKENS

TOKENIZER_SEED = 11
NUM_DOCUMENTS = 12_000


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Train a tokenizer with `vocabulary` tokens on texts. The special tokens get the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.tokenizer", description="Train the tokenizer on generated text."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=BUILD / "tokenizer.json",
        help="the tokenizer's file (default: %(default)s)",
    )
    parser.add_argument(
        "--documents",
        type=int,
        default=NUM_DOCUMENTS,
        help="documents to train on (default: %(default)s)",
    )
    options = parser.parse_args()
    sample = islice(documents(TOKENIZER_SEED, Split.TRAIN), options.documents)
    tokenizer = train_tokenizer((document.text for document in sample), Shape().vocabulary)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out))
    print(f"{options.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
