"""All generated texts are deterministic, keep to their split, and have complete sentences."""

import random
import re
from functools import cache
from itertools import islice

import pytest

from training.text import cast
from training.text.cast import HE, ME, SHE, Sort
from training.text.document import Document, Kind, documents
from training.text.lists import NAMES, words
from training.text.names import common_words, known_names, names_in, new_name, with_new_names
from training.text.plot import plots
from training.text.scene import Wish
from training.text.split import HELD_OUT_NAMES, HELD_OUT_SUBJECTS, Split, is_held_out
from training.text.story import Story, write_story

NUM_DOCUMENTS = 250
PLOTS = [plot.name for plot in plots()]


@cache
def drawn(kind: Kind, split: Split = Split.TRAIN) -> list[Document]:
    return list(islice(documents(5, split, kind=kind), NUM_DOCUMENTS))


@cache
def stories(plot: str, count: int = 40) -> list[Story]:
    rng = random.Random(f"stories of {plot}")
    return [write_story(rng, Split.TRAIN, Wish(plot=plot)) for _ in range(count)]


def test_the_same_seed_gives_the_same_text() -> None:
    once, again = (list(islice(documents(3, Split.TRAIN), 50)) for _ in range(2))
    other = list(islice(documents(4, Split.TRAIN), 50))
    assert once == again
    assert once != other


def test_held_out_combinations_never_occur_in_the_training_split() -> None:
    for kind in Kind:
        for document in drawn(kind):
            assert not any(is_held_out(combination) for combination in document.combinations)


def test_every_held_out_story_has_a_held_out_combination() -> None:
    for kind in (Kind.STORY, Kind.LONG_STORY):
        for document in drawn(kind, Split.HELD_OUT):
            assert document.combinations
            assert all(is_held_out(combination) for combination in document.combinations)


def test_held_out_subjects_are_never_asked_for_in_training() -> None:
    """Held-out subjects may occur only inside longer themes: "an otter that came to visit"."""
    asked = (
        r"story about (?:an?|the) (?:\w+ )??(\w+)(?: named \w+| called \w+)?(?:, please)?[.!?]?<"
    )
    subjects = {s for d in drawn(Kind.CHAT) for s in re.findall(asked, d.text)}
    assert len(subjects) > 20
    assert not HELD_OUT_SUBJECTS & subjects


@pytest.mark.parametrize("kind", list(Kind))
def test_no_text_has_an_unfilled_slot_a_double_space_or_a_stray_stop(kind: Kind) -> None:
    for document in drawn(kind):
        text = re.sub(r"<\|\w+\|>", "\n", document.text)
        chats_may = r" {2}| [,.!?;]|[{}\[\]<>]|\.\.|,,|,\.|\bNone\b"
        found = re.search(chats_may, text)
        assert found is None, text[max(0, found.start() - 40) : found.end() + 40]


@pytest.mark.parametrize("kind", [Kind.STORY, Kind.LONG_STORY, Kind.EXPLANATION])
def test_a_and_an_agree_with_the_next_word(kind: Kind) -> None:
    for document in drawn(kind):
        for article, word in re.findall(r"\b([Aa]n?) ([a-z]+)", document.text):
            sounds_open = word[0] in "aeiou" and not word.startswith(("uni", "use", "one"))
            sounds_open = sounds_open or word == "hour"
            assert (article.lower() == "an") == sounds_open, f"{article} {word}"


def test_every_story_document_begins_with_a_capital_and_ends_with_its_last_sentence() -> None:
    for document in drawn(Kind.STORY):
        assert re.match(r'<\|endoftext\|>"?[A-Z]', document.text)
        assert document.text.rstrip('"')[-1] in ".!?"


def test_the_object_that_is_lost_is_the_object_that_is_found() -> None:
    for story in stories("lost"):
        before, _, after = story.text.partition("\n\n")
        thing = story.scene.slots["full"]
        assert thing in before + after
        assert story.text.count(story.scene.slots["thing"]) >= 3
        assert story.scene.slots["spot"] in story.text


@pytest.mark.parametrize("plot", PLOTS)
def test_only_the_pronouns_of_those_who_occur_are_used(plot: str) -> None:
    for story in stories(plot):
        scene = story.scene
        here = {scene.hero.pronouns.he, scene.friend.pronouns.he}
        if scene.slots["other"] in story.text or scene.slots["odesc"] in story.text:
            here.add(scene.slots["ohe"])
        if re.search(r"\b(mother|grandmother|aunt) saw it", story.text):
            here.add("she")
        told = re.sub(r'"[^"]*"', "", story.text)
        used = {word.lower() for word in re.findall(r"\b([Hh]e|[Ss]he)\b", told)}
        assert used <= here, story.text


@pytest.mark.parametrize("plot", PLOTS)
def test_a_cause_keeps_its_effect(plot: str) -> None:
    """Slots that a plot chooses together come from the same choice."""
    lets = next(p for p in plots() if p.name == plot).lets
    for story in stories(plot):
        for let in lets:
            heads = [choice[0] for choice in let.choices]
            assert len(let.names) == 1 or len(heads) == len(let.choices)
            assert all(story.scene.slots[name] for name in let.names)


@pytest.mark.parametrize("plot", PLOTS)
def test_questions_about_a_story_are_answered_with_its_own_facts(plot: str) -> None:
    for story in stories(plot, 10):
        for question, answer in story.questions():
            assert question.endswith("?")
            assert answer[-1] in ".!"
            assert "{" not in question + answer


def test_a_story_keeps_to_what_was_asked_for() -> None:
    rng = random.Random(8)
    wish = Wish(sort=Sort.ANIMAL, noun="fox", name="Pim", place="lighthouse")
    for _ in range(20):
        story = write_story(rng, Split.TRAIN, wish)
        assert "Pim" in story.text
        assert "lighthouse" in story.text[:300]


def test_a_narrator_speaks_of_herself_in_the_first_person() -> None:
    rng = random.Random(9)
    for _ in range(40):
        story = write_story(rng, Split.TRAIN, Wish(sort=Sort.CHILD, narrated=True))
        assert story.scene.hero.pronouns is ME
        told = re.sub(r'"[^"]*"', "", story.text)
        assert re.search(r"\bI\b", told)
        assert not re.search(r"\bI (is|has|does|goes)\b", told)


def test_names_from_the_lists_have_the_pronouns_of_their_list() -> None:
    rng = random.Random(10)
    anna = write_story(rng, Split.TRAIN, Wish(sort=Sort.ADULT, name="Anna"))
    otto = write_story(rng, Split.TRAIN, Wish(sort=Sort.ADULT, name="Otto"))
    assert anna.scene.hero.pronouns is SHE
    assert otto.scene.hero.pronouns is HE


def test_no_invented_name_is_a_name_of_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pronouns of such a name could not be kept, and a long story would never be finished."""
    monkeypatch.setattr(cast, "INVENTED_NAME_SHARE", 1.0)
    listed = {name for names in NAMES for name in words(names)}
    rng = random.Random(11)
    invented = {cast.draw_name(rng, Sort.CHILD, HE) for _ in range(40_000)}
    assert len(invented) > 10_000
    assert not invented & listed


def test_most_names_that_a_user_is_the_first_to_say_are_new_throughout_the_chat() -> None:
    rng = random.Random(12)
    begun = "<|user|>A fox named Pim<|end|><|assistant|>Pim the fox met Anna. Will Pim's fox wait?"
    chat = f"{begun}<|end|><|user|>Who was Anna?<|end|><|assistant|>Anna was Pim's friend.<|end|>"
    changed = [text for _ in range(200) if (text := with_new_names(chat, rng)) != chat]
    assert 120 < len(changed) < 200
    for text in changed:
        hero, *_ = names_in(text)
        assert hero not in known_names().union(HELD_OUT_NAMES)
        assert text == chat.replace("Pim", hero)


def test_a_name_that_no_user_says_first_stays() -> None:
    rng = random.Random(13)
    for text in (
        "<|endoftext|>Pim the fox met Anna.",
        "<|user|>A story<|end|><|assistant|>Pim slept.<|end|><|user|>Who is Pim?<|end|>",
    ):
        assert {with_new_names(text, rng) for _ in range(50)} == {text}


def test_new_names_are_many_and_never_those_that_are_held_out() -> None:
    rng = random.Random(14)
    drawn = {new_name(rng) for _ in range(20_000)}
    assert len(drawn) > 15_000
    assert not drawn & known_names().union(common_words(), HELD_OUT_NAMES)
    assert all(name == name.capitalize() and name.isalpha() for name in drawn)


def test_no_training_text_has_a_held_out_name() -> None:
    rng = random.Random(15)
    for document in islice(documents(16, Split.TRAIN), 2_000):
        assert not {*HELD_OUT_NAMES} & {*names_in(with_new_names(document.text, rng))}
