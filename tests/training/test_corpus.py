"""The training split is the same, whatever the number of processes that write it."""

from itertools import islice

import numpy as np
import pytest

from training import corpus
from training.corpus import TRAIN_SEED, pack, pack_train
from training.text.document import Kind, documents
from training.text.split import Split
from training.tokenizer import train_tokenizer


def test_parts_follow_one_another_and_the_first_has_the_seed_of_the_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corpus, "PART_TOKENS", 2000)
    texts = (document.text for document in islice(documents(3, Split.TRAIN), 200))
    tokenizer = train_tokenizer(texts, 512)
    parts = list(pack_train(tokenizer, 5000, Kind.CHAT))
    assert [len(part) for part in parts] == [2000, 2000, 2000]
    assert np.array_equal(parts[0], pack(tokenizer, TRAIN_SEED, Split.TRAIN, 2000, Kind.CHAT))
    assert not np.array_equal(parts[0], parts[1])
