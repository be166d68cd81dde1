"""Finds the names in a text, and gives the users of a chat names that no other text has.

The lists have a few hundred names, and a model learns them by heart. To keep a name that a user
makes up, it must have learned to copy. So in most chats that begin with a user's name, the name is
new, and the same throughout the chat. Names that rill chooses stay those of the lists.
"""

import random
import re
from functools import cache
from itertools import product

from training.text.lists import FOLDER, NAMES, words
from training.text.split import HELD_OUT_NAMES
from training.text.template import END_OF_TURN

NEW_NAMES_SHARE = 0.8
SPLICED_SHARE = 0.4
SHORTEST, LONGEST = 3, 12
NUM_SYLLABLES, SYLLABLES_WEIGHTS = (1, 2, 3, 4), (2, 6, 4, 1)


def with_new_names(text: str, rng: random.Random) -> str:
    """Return the text with a new name for most names that a user is the first to say."""
    new: dict[str, str] = {}
    told = ""
    for turn in text.split(END_OF_TURN):
        if "<|user|>" in turn:
            said = [name for name in names_in(turn) if name in known_names() and name not in told]
            new |= {name: new_name(rng) for name in said if rng.random() < NEW_NAMES_SHARE}
        told += turn
    return re.sub(r"[A-Z][a-z]+", lambda word: new.get(word[0], word[0]), text) if new else text


def new_name(rng: random.Random) -> str:
    """Draw a name that is in no list, that no syllables make, and that is not held out."""
    while True:
        name = (_spliced(rng) if rng.random() < SPLICED_SHARE else _spelled(rng)).capitalize()
        if (
            SHORTEST <= len(name) <= LONGEST
            and name not in known_names()
            and name not in HELD_OUT_NAMES
            and name not in common_words()
        ):
            return name


def names_in(text: str) -> list[str]:
    """Return the capitalized words that the word lists do not have as common words, in order."""
    return [word for word in re.findall(r"[A-Z][a-z]+", text) if word not in common_words()]


@cache
def common_words() -> frozenset[str]:
    """Return all words of the plots and the word lists except the names, each capitalized."""
    paths = [*FOLDER.glob("plots/*.txt"), *FOLDER.glob("words/*.txt")]
    named = re.compile("name.*|syllables")
    texts = (path.read_text(encoding="utf-8") for path in paths if not named.match(path.stem))
    return frozenset(word.capitalize() for text in texts for word in re.findall("[A-Za-z]+", text))


@cache
def known_names() -> frozenset[str]:
    """Return the names of the lists, and all that the syllables make."""
    return frozenset(map("".join, product(*_parts("syllables")))).union(*map(words, NAMES))


def _spelled(rng: random.Random) -> str:
    """Draw syllables, each of a start, a vowel and an end."""
    (number,) = rng.choices(NUM_SYLLABLES, SYLLABLES_WEIGHTS)
    return "".join(rng.choice(part) for _ in range(number) for part in _parts("name-parts"))


def _spliced(rng: random.Random) -> str:
    """Join the beginning of a name and the end of another."""
    first, last = (rng.choice(words(rng.choice(NAMES))) for _ in range(2))
    return first[: rng.randint(1, len(first))] + last[rng.randint(0, len(last) - 1) :].lower()


@cache
def _parts(name: str) -> list[list[str]]:
    """Return what one of each line of words/NAME.txt makes a name; - is nothing."""
    return [line.replace("-", "").split(" ") for line in words(name)]
