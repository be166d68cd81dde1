"""Draws the scene of a story: its plot, characters, place and things, and the slots they fill."""

import random
from dataclasses import dataclass, field

from training.text.cast import HE, SHE, Character, Sort, draw_character, nouns
from training.text.lists import rules, table
from training.text.phrase import capitalised, expand
from training.text.plot import Plot, plots
from training.text.split import Split, belongs

NOT_BEASTS = frozenset({"dragon", "unicorn", "robot", "giant", "ghost", "whale", "dolphin", "ant"})
FABLE_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Wish:
    """The requested subject of a story. A field that is None is drawn at random."""

    plot: str | None = None
    sort: Sort | None = None
    noun: str | None = None
    name: str | None = None
    place: str | None = None
    thing: str | None = None
    beast: str | None = None
    friend: Character | None = None
    narrated: bool = False


NO_WISH = Wish()


@dataclass(slots=True)
class Scene:
    """The plot, the hero, the friend and every other slot of one story."""

    rng: random.Random
    plot: Plot
    hero: Character
    friend: Character
    slots: dict[str, str]
    combination: tuple[str, str, str]
    said: set[str] = field(default_factory=set)

    def write(self, template: str) -> str:
        return capitalised(expand(template, self.slots, rules(), self.rng))


def draw_scene(rng: random.Random, split: Split, wish: Wish = NO_WISH) -> Scene:
    """Draw scenes until one belongs to the split."""
    while True:
        scene = _draw(rng, wish)
        if belongs(scene.combination, split):
            return scene


def _draw(rng: random.Random, wish: Wish) -> Scene:
    plot = _draw_plot(rng, wish)
    sort = wish.sort or rng.choices(list(Sort), (45, 30, 25))[0]
    hero = draw_character(rng, sort, noun=wish.noun, name=wish.name, narrates=wish.narrated)
    friend = wish.friend or _draw_companion(rng, hero, [hero])
    other = _draw_companion(rng, hero, [hero, friend])
    thing, adjectives, use, mending = _pick(rng, table("things"), wish.thing)
    place, preposition, details, spots = _pick(rng, table("places"), wish.place)
    taken = {hero.noun, friend.noun, other.noun}
    beasts = [n for n in nouns(Sort.ANIMAL) if n not in NOT_BEASTS and n not in taken]
    beast = wish.beast or rng.choice(beasts)
    detail, detail2 = rng.sample([part.strip() for part in details.split(";")], 2)
    broken, mend = (part.strip() for part in mending.split(";"))
    slots = {
        **hero.slots("", "hero"),
        **friend.slots("f", "friend"),
        **other.slots("o", "other"),
        **group_slots(hero),
        "call": hero.name,
        "habit": hero.habit,
        "thing": thing,
        "full": f"{rng.choice(adjectives.split(','))} {thing}",
        "use": use,
        "break": broken,
        "mend": mend,
        "beast": beast,
        "place": place,
        "at_place": f"{preposition} the {place}",
        "detail": detail,
        "detail2": detail2,
        "spot": rng.choice(spots.split(";")).strip(),
    }
    for let in plot.lets:
        choice = rng.choice(let.choices)
        values = [expand(value, slots, rules(), rng) for value in choice]
        slots |= dict(zip(let.names, values, strict=True))
    return Scene(rng, plot, hero, friend, slots, (hero.name, plot.name, slots[plot.uses]))


def group_slots(hero: Character) -> dict[str, str]:
    """Return the pronouns for the hero with others: they, or we if the hero tells the story."""
    third = ("they", "them", "their", "themselves")
    first = ("we", "us", "our", "ourselves")
    return dict(zip(third, first if hero.is_narrator else third, strict=True))


def _draw_plot(rng: random.Random, wish: Wish) -> Plot:
    if wish.plot:
        return next(plot for plot in plots() if plot.name == wish.plot)
    uses = "thing" if wish.thing else "beast" if wish.beast else None
    return rng.choice([plot for plot in plots() if uses in (None, plot.uses)])


def _draw_companion(rng: random.Random, hero: Character, taken: list[Character]) -> Character:
    """Draw a character with another noun, and mostly other pronouns, so that no "he" is unclear."""
    is_fable = hero.sort is Sort.ANIMAL and rng.random() < 0.8
    while True:
        sort = Sort.ANIMAL if is_fable else rng.choice((Sort.CHILD, Sort.ADULT))
        companion = draw_character(rng, sort)
        if any(companion.noun == c.noun or companion.name == c.name for c in taken):
            continue
        same = companion.pronouns is hero.pronouns
        if not same or hero.pronouns not in (HE, SHE) or rng.random() < FABLE_SHARE:
            return companion


def _pick(
    rng: random.Random, rows: tuple[tuple[str, ...], ...], noun: str | None
) -> tuple[str, ...]:
    if noun is None:
        return rng.choice(rows)
    return next(row for row in rows if row[0] == noun)
