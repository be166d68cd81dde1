"""Writes stories from plots, with interludes and an ending, and questions about them."""

import random
from dataclasses import dataclass

from training.text.lists import sections, words
from training.text.plot import INTERLUDE, PARAGRAPH
from training.text.scene import NO_WISH, Scene, Wish, draw_scene
from training.text.split import Split

NUMBERS = ("One", "Two", "Three", "Four")


@dataclass(frozen=True, slots=True)
class Story:
    """A finished text, the questions it answers and the combinations that place it in a split."""

    text: str
    scene: Scene
    combinations: tuple[tuple[str, str, str], ...]

    def questions(self) -> list[tuple[str, str]]:
        """Return questions about the story with their answers, in random order."""
        scene = self.scene
        asked = [(q, scene.rng.choice(answers)) for q, answers in scene.plot.questions]
        asked.append(("Who was the story about?", _about(scene)))
        asked.append(("Where did [it|the story] happen?", "It happened {at_place}."))
        asked.append(("Who was {friend}?", "{Friend} was {a fdesc} and {hero's} friend."))
        scene.rng.shuffle(asked)
        return [(scene.write(q), scene.write(a)) for q, a in asked]


def write_story(
    rng: random.Random, split: Split, wish: Wish = NO_WISH, *, liveliness: float = 0.5
) -> Story:
    """Write a story. `liveliness` (0..1) is the chance of each interlude and optional beat."""
    while True:
        scene = draw_scene(rng, split, wish)
        text = "\n\n".join(_opening(scene, _body(scene, liveliness), liveliness))
        if _keeps_to(text, wish):
            return Story(text, scene, (scene.combination,))


def write_long_story(rng: random.Random, split: Split, chapters: int) -> Story:
    """Write a story in parts with the same hero and friend, and another plot in each part."""
    first = draw_scene(rng, split)
    hero, friend = first.hero, first.friend
    scenes, used = [first], {first.plot.name}
    while len(scenes) < chapters:
        wish = Wish(sort=hero.sort, noun=hero.noun, name=hero.name, friend=friend)
        scene = draw_scene(rng, split, wish)
        if scene.plot.name not in used and scene.hero.pronouns is hero.pronouns:
            used.add(scene.plot.name)
            scenes.append(scene)
    style = rng.choice(("Part", "Chapter", ""))
    parts: list[str] = []
    for number, scene in enumerate(scenes):
        body = _body(scene, 0.6, is_last=number == chapters - 1)
        if style:
            parts.append(f"{style} {NUMBERS[number]}")
        parts += _opening(scene, body, 0.6) if number == 0 else body
    return Story("\n\n".join(parts), scenes[-1], tuple(scene.combination for scene in scenes))


def _keeps_to(text: str, wish: Wish) -> bool:
    """Return whether the text contains the wished things, and the wished place near its start."""
    if wish.place and wish.place not in text[:300]:
        return False
    return all(wanted in text for wanted in (wish.thing, wish.beast) if wanted)


def _opening(scene: Scene, body: list[str], liveliness: float) -> list[str]:
    titles = sections("openings")
    kind = "me" if scene.hero.is_narrator else scene.hero.sort.value
    if kind != "me" and scene.rng.random() < 0.12:
        kind = "start"
    opening = scene.write(scene.rng.choice(titles[kind]))
    if scene.rng.random() < 0.3 + 0.5 * liveliness:
        opening += " " + scene.write(scene.rng.choice(titles["setting"]))
    return [f"{opening} {body[0]}", *body[1:]]


def _body(scene: Scene, liveliness: float, *, is_last: bool = True) -> list[str]:
    rng = scene.rng
    paragraphs: list[list[str]] = [[]]
    for beat in scene.plot.beats:
        if beat.options == (PARAGRAPH,):
            if len(" ".join(paragraphs[-1])) > 200 or rng.random() < 0.5:
                paragraphs.append([])
        elif beat.options[0].strip() == INTERLUDE:
            if rng.random() < liveliness:
                paragraphs[-1].append(_fresh(scene, words("interludes")))
        elif not beat.is_optional or rng.random() < liveliness:
            paragraphs[-1].append(scene.write(rng.choice(beat.options)))
    if is_last:
        ending = paragraphs[-1] if rng.random() < 0.5 else []
        ending.append(_fresh(scene, words("closings")))
        if ending is not paragraphs[-1]:
            paragraphs.append(ending)
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def _fresh(scene: Scene, options: tuple[str, ...]) -> str:
    template = scene.rng.choice([option for option in options if option not in scene.said])
    scene.said.add(template)
    return scene.write(template)


def _about(scene: Scene) -> str:
    if scene.hero.is_narrator:
        return "It was about the one who told it."
    return scene.rng.choice(
        (
            "It was about {a noun} named {hero}.",
            "The story was about {hero}, {a noun} who {habit}.",
            "It was about {hero} and {friend}.",
        )
    )
