"""The measure of kept names accepts every story of the training text, and no changed name."""

import random
from collections.abc import Callable, Iterator

import pytest

from training.keeping import Request, keeps_name, named, with_unseen_names
from training.text.cast import Sort, nouns
from training.text.names import common_words, names_in
from training.text.scene import Wish
from training.text.split import Split
from training.text.story import write_story


@pytest.mark.parametrize("requests", [named, with_unseen_names])
def test_every_story_of_the_training_text_keeps_its_name(
    requests: Callable[[], Iterator[Request]],
) -> None:
    rng = random.Random(6)
    for request in requests():
        sort = next(sort for sort in Sort if request.subject in nouns(sort))
        story = write_story(
            rng, Split.TRAIN, Wish(sort=sort, noun=request.subject, name=request.name)
        )
        assert request.name
        assert keeps_name(story.text, request.name), story.text
        assert request.subject in story.text


def test_names_are_capitalised_words_that_no_word_list_has() -> None:
    assert names_in("Pim's den was old. Then Anna came. Will Pim wait?") == ["Pim", "Anna", "Pim"]
    assert "Will" in common_words()


@pytest.mark.parametrize(
    "text",
    [
        "Rashid the fox lived near the beach. Pim was afraid. Pim told Wilma.",
        "Pim the fox lived near the beach. Rashid was afraid. He told Wilma.",
        "Pim asked Rasafy. Rasenvin said yes. Raserin only smiled. Pim smiled.",
        "Here is a story about a fox named Pim.\n\nRashid the fox told Wilma. Pim slept. Pim woke.",
        "A fox lived near the beach.",
    ],
)
def test_a_changed_name_is_not_kept(text: str) -> None:
    assert not keeps_name(text, "Pim")


def test_a_kept_name_may_follow_a_preface() -> None:
    story = "Pim the fox lived near the beach. He told Wilma. Pim smiled."
    assert keeps_name(story, "Pim")
    assert keeps_name(f"Here is a story about Pim.\n\n{story}", "Pim")
