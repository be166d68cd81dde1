"""The people and animals of a story: a name, a noun, a habit and the pronouns that agree."""

import random
from dataclasses import dataclass
from enum import StrEnum

from training.text.lists import NAMES, table, words

INVENTED_NAME_SHARE = 0.12
CHILD_ADJECTIVES = ("little", "clever", "cheerful", "tall", "quiet", "freckled", "young")
ADULT_ADJECTIVES = ("old", "young", "kind", "grey-haired", "cheerful", "tall", "wise", "round")
ANIMAL_ADJECTIVES = ("old", "young", "wise", "little", "clever", "cheerful", "sleepy")
FEMALE_NOUNS = ("queen", "witch", "princess", "hen", "cow")
MALE_NOUNS = ("king", "wizard", "prince", "fisherman", "postman")


class Sort(StrEnum):
    CHILD = "child"
    ADULT = "adult"
    ANIMAL = "animal"


@dataclass(frozen=True, slots=True)
class Pronouns:
    he: str
    him: str
    his: str
    himself: str


SHE = Pronouns("she", "her", "her", "herself")
HE = Pronouns("he", "him", "his", "himself")
ME = Pronouns("I", "me", "my", "myself")


@dataclass(frozen=True, slots=True)
class Character:
    """A person or an animal in a story. `habit` completes "somebody who ...", in the past tense."""

    name: str
    noun: str
    adjective: str
    habit: str
    sort: Sort
    pronouns: Pronouns

    @property
    def is_narrator(self) -> bool:
        return self.pronouns is ME

    def slots(self, prefix: str, role: str) -> dict[str, str]:
        """Return the slots of this character: {hero}, {he}, ... or {friend}, {fhe}, ..."""
        spoken = "I" if self.is_narrator else self.name
        own = self.pronouns
        return {
            role: spoken,
            f"{role}'s": "my" if self.is_narrator else f"{self.name}'s",
            f"{prefix}he": own.he,
            f"{prefix}him": own.him,
            f"{prefix}his": own.his,
            f"{prefix}himself": own.himself,
            f"{prefix}noun": self.noun,
            f"{prefix}desc": f"{self.adjective} {self.noun}",
        }


def nouns(sort: Sort) -> tuple[str, ...]:
    """Return all nouns that a character of this sort can have."""
    if sort is Sort.CHILD:
        return ("girl", "boy")
    return tuple(habits(sort))


def habits(sort: Sort) -> dict[str, str]:
    """Return the habit of each noun, for adults or for animals."""
    rows = table("people" if sort is Sort.ADULT else "animals")
    return {row[0]: row[1] for row in rows}


def draw_character(
    rng: random.Random,
    sort: Sort,
    *,
    noun: str | None = None,
    name: str | None = None,
    narrates: bool = False,
) -> Character:
    """Draw a character that agrees with the noun and the name, if they are given."""
    pronouns = _pronouns_for(rng, noun, name)
    if sort is Sort.CHILD:
        noun = "girl" if pronouns is SHE else "boy"
        habit = rng.choice(words("hobbies"))
        adjective = rng.choice(CHILD_ADJECTIVES)
    else:
        noun = noun or _fitting_noun(rng, sort, pronouns)
        habit = habits(sort)[noun]
        adjective = rng.choice(ADULT_ADJECTIVES if sort is Sort.ADULT else ANIMAL_ADJECTIVES)
    habit = habit.replace("{his}", ME.his if narrates else pronouns.his)
    name = name or draw_name(rng, sort, pronouns)
    return Character(name, noun, adjective, habit, sort, ME if narrates else pronouns)


def draw_name(rng: random.Random, sort: Sort, pronouns: Pronouns) -> str:
    """Draw a name from the lists, or sometimes invent a name from syllables."""
    if rng.random() < INVENTED_NAME_SHARE:
        return _invented_name(rng)
    if sort is Sort.ANIMAL and rng.random() < 0.6:
        return rng.choice(words("names-animal"))
    return rng.choice(words("names-she" if pronouns is SHE else "names-he"))


def _invented_name(rng: random.Random) -> str:
    """Draw syllables. A name of the lists is no invented name: it has its own pronouns."""
    while True:
        name = "".join(rng.choice(line.split()) for line in words("syllables")).replace("-", "")
        if not any(name in words(listed) for listed in NAMES):
            return name


def _pronouns_for(rng: random.Random, noun: str | None, name: str | None) -> Pronouns:
    if noun in FEMALE_NOUNS or noun == "girl" or name in words("names-she"):
        return SHE
    if noun in MALE_NOUNS or noun == "boy" or name in words("names-he"):
        return HE
    return rng.choice((SHE, HE))


def _fitting_noun(rng: random.Random, sort: Sort, pronouns: Pronouns) -> str:
    wrong = MALE_NOUNS if pronouns is SHE else FEMALE_NOUNS
    return rng.choice([noun for noun in nouns(sort) if noun not in wrong])
