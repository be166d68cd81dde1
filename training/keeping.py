"""Measures how often rill's stories keep to the requested subject and to their names."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from training.chatter import Chatter, Sampling
from training.text.cast import Sort, draw_character, nouns
from training.text.lists import table
from training.text.names import common_words, names_in
from training.text.phrase import with_article
from training.text.split import HELD_OUT_NAMES, HELD_OUT_SUBJECTS, Split, may_be_asked_for

SEED = 21
NUM_NAMED = 100
MOST_NAMES = 3
HELD_OUT_TRIES = 4


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for: the words that the story should contain, and its hero's name."""

    text: str
    subject: str
    seed: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """Counts over a list of requests. If no request has a name, `names` is None."""

    asked: int
    subjects: int
    names: int | None


def named() -> Iterator[Request]:
    """Ask for grown-ups and animals with names, drawn as in training.

    Not for children, because some of their stories say an age in place of "boy" or "girl".
    """
    rng = random.Random(SEED)
    for seed in range(NUM_NAMED):
        hero = draw_character(rng, rng.choice((Sort.ADULT, Sort.ANIMAL)))
        while hero.name in common_words():  # Hazel, Will
            hero = draw_character(rng, hero.sort)
        yield _about(hero.noun, hero.name, seed)


def with_unseen_names() -> Iterator[Request]:
    """Ask for animals with names that no list has and no syllables make."""
    rng = random.Random(SEED)
    for seed, name in enumerate(HELD_OUT_NAMES):
        yield _about(rng.choice(nouns(Sort.ANIMAL)), name, seed)


def places_and_things() -> Iterator[Request]:
    """Ask once for each place and each thing that may be asked for in training."""
    for seed, row in enumerate(table("places") + table("things")):
        if may_be_asked_for(row[0], Split.TRAIN):
            yield Request(f"Tell me a story about {with_article(row[0])}", row[0], seed)


def held_out_subjects() -> Iterator[Request]:
    """Ask several times for each subject that nobody asks for in training."""
    for subject in sorted(HELD_OUT_SUBJECTS):
        for seed in range(HELD_OUT_TRIES):
            yield Request(f"Tell me a story about {with_article(subject)}", subject, seed)


def count_kept(chatter: Chatter, requests: Iterable[Request]) -> Kept:
    """Ask for every story, and count those that keep to their subject and to their name."""
    asked = subjects = 0
    names: list[bool] = []
    for request in requests:
        text = chatter.chat([request.text], Sampling(seed=request.seed)).text
        asked += 1
        subjects += request.subject in text.lower()
        if request.name is not None:
            names.append(keeps_name(text, request.name))
    return Kept(asked, subjects, sum(names) if names else None)


def keeps_name(text: str, name: str) -> bool:
    """Return whether the first name is `name`, it comes again, and there are at most three names.

    The stories of the training text are so: there are a hero, a friend and sometimes somebody else.
    A name that changes on its way counts as one more name.
    """
    preface, _, rest = text.partition("\n\n")
    found = names_in(rest if "story about" in preface else text)
    return found[:1] == [name] and found.count(name) > 1 and len(set(found)) <= MOST_NAMES


def _about(noun: str, name: str, seed: int) -> Request:
    text = f"Write a short story about {with_article(noun)} named {name}."
    return Request(text, noun, seed, name)
