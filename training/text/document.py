"""The mixture of documents: draws every kind, as the strings that the tokenizer sees."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from training.text.cast import Sort
from training.text.chat import write_chat
from training.text.exposition import explain
from training.text.scene import NO_WISH, Wish
from training.text.split import Split
from training.text.story import write_long_story, write_story
from training.text.template import END_OF_TEXT, render

NARRATED_SHARE = 0.08


class Kind(StrEnum):
    STORY = "story"
    LONG_STORY = "long story"
    CHAT = "chat"
    EXPLANATION = "explanation"


SHARES = {Kind.STORY: 0.36, Kind.LONG_STORY: 0.05, Kind.CHAT: 0.40, Kind.EXPLANATION: 0.19}


@dataclass(frozen=True, slots=True)
class Document:
    """A text that begins with <|endoftext|>. The <|endoftext|> of the next document ends it."""

    kind: Kind
    text: str
    combinations: tuple[tuple[str, str, str], ...] = ()


def documents(seed: int, split: Split, *, kind: Kind | None = None) -> Iterator[Document]:
    """Yield documents without end. The same seed and split give the same documents."""
    rng = random.Random(f"{seed}/{split.value}")
    while True:
        drawn = rng.choices(list(SHARES), list(SHARES.values()))[0]
        yield write_document(rng, split, kind or drawn)


def write_document(rng: random.Random, split: Split, kind: Kind) -> Document:
    if kind is Kind.CHAT:
        chat = write_chat(rng, split)
        return Document(kind, render(chat.messages), tuple(chat.combinations))
    if kind is Kind.EXPLANATION:
        return Document(kind, END_OF_TEXT + explain(rng))
    if kind is Kind.LONG_STORY:
        story = write_long_story(rng, split, chapters=rng.choice((2, 2, 3)))
    else:
        narrated = rng.random() < NARRATED_SHARE
        wish = Wish(sort=Sort.CHILD, narrated=True) if narrated else NO_WISH
        story = write_story(rng, split, wish, liveliness=rng.choice((0.1, 0.4, 0.7)))
    return Document(kind, END_OF_TEXT + story.text, story.combinations)
