"""Draws the subject that a user asks for, in words, and as the wish that the story fulfils."""

import random
from collections.abc import Callable

from training.text.cast import HE, SHE, Sort, draw_name, nouns
from training.text.lists import rules, table
from training.text.phrase import expand, with_article
from training.text.plot import plots
from training.text.scene import NO_WISH, NOT_BEASTS, Scene, Wish
from training.text.split import Split, may_be_asked_for

Subject = tuple[str, Wish]


def draw_subject(rng: random.Random, split: Split) -> tuple[str, Wish]:
    """Draw a subject, such as "a fox named Pim", and its wish."""
    kinds: tuple[Callable[[random.Random], tuple[str, Subject]], ...] = (
        _somebody_named,
        _somebody_named,
        _somebody,
        _somebody,
        _name,
        _place,
        _place,
        _thing,
        _two_things,
    )
    while True:
        key, subject = rng.choice(kinds)(rng)
        if may_be_asked_for(key, split):
            return subject


def draw_theme(rng: random.Random, scene: Scene) -> str:
    """Name the theme of a finished scene, such as "a lost kite" or "courage"."""
    return expand(rng.choice(scene.plot.subjects), scene.slots, rules(), rng)


def _sort(rng: random.Random) -> Sort:
    return rng.choices(list(Sort), (25, 35, 40))[0]


def _somebody(rng: random.Random) -> tuple[str, Subject]:
    sort = _sort(rng)
    noun = rng.choice(nouns(sort))
    adjective = rng.choice(("", "", "", "little ", "brave ", "old ", "lonely ", "clever "))
    phrase = with_article(adjective + noun)
    return noun, (phrase, Wish(sort=sort, noun=noun))


def _somebody_named(rng: random.Random) -> tuple[str, Subject]:
    sort = _sort(rng)
    noun = rng.choice(nouns(sort))
    pronouns = SHE if noun == "girl" else HE if noun == "boy" else rng.choice((SHE, HE))
    name = draw_name(rng, sort, pronouns)
    link = rng.choice((" named ", " called ", ", "))
    phrase = f"{name} the {noun}" if link == ", " else f"{with_article(noun)}{link}{name}"
    return noun, (phrase, Wish(sort=sort, noun=noun, name=name))


def _name(rng: random.Random) -> tuple[str, Subject]:
    sort = _sort(rng)
    name = draw_name(rng, sort, rng.choice((SHE, HE)))
    return name, (name, Wish(sort=sort, name=name))


def _place(rng: random.Random) -> tuple[str, Subject]:
    place = rng.choice(table("places"))[0]
    phrase = f"the {place}" if place == "moon" or rng.random() < 0.25 else with_article(place)
    return place, (phrase, Wish(place=place))


def _thing(rng: random.Random) -> tuple[str, Subject]:
    thing = rng.choice(table("things"))[0]
    phrase = with_article(thing)
    roll = rng.random()
    if roll < 0.12:
        return thing, (f"a lost {thing}", Wish(plot="lost", thing=thing))
    if roll < 0.24:
        return thing, (f"a broken {thing}", Wish(plot="repair", thing=thing))
    return thing, (phrase, Wish(thing=thing))


def _two_things(rng: random.Random) -> tuple[str, Subject]:
    sort = rng.choice((Sort.ADULT, Sort.ANIMAL))
    noun = rng.choice(nouns(sort))
    if rng.random() < 0.5:
        place = rng.choice(table("places"))[0]
        return place, (
            f"{with_article(noun)} and {with_article(place)}",
            Wish(sort=sort, noun=noun, place=place),
        )
    beast = rng.choice([n for n in nouns(Sort.ANIMAL) if n not in NOT_BEASTS and n != noun])
    plot = rng.choice([plot.name for plot in plots() if plot.name in ("visitor", "rescue")])
    return beast, (
        f"{with_article(noun)} and {with_article(beast)}",
        Wish(plot=plot, sort=sort, noun=noun, beast=beast),
    )


ANYTHING: Subject = ("", NO_WISH)
