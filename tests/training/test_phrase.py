"""The template language of the sentences."""

import random
import re

import pytest

from training.text.lists import FOLDER
from training.text.phrase import TemplateError, capitalised, expand, parse, with_article


def say(template: str, **slots: str) -> str:
    return expand(template, slots, {"colour": "red|blue"}, random.Random(1))


def test_a_slot_is_filled_and_raised_on_request() -> None:
    assert say("{he} and {He}", he="she") == "she and She"


def test_an_article_agrees_with_the_word_that_follows() -> None:
    assert say("{a thing}", thing="owl") == "an owl"
    assert say("{A thing}", thing="red owl") == "A red owl"
    assert [with_article(w) for w in ("unicorn", "hour", "umbrella", "old ewe", "useful map")] == [
        "a unicorn",
        "an hour",
        "an umbrella",
        "an old ewe",
        "a useful map",
    ]


def test_alternatives_nest_and_rules_expand() -> None:
    assert say("[x [y|y]|x y]") == "x y"
    assert say("<colour>") in {"red", "blue"}


def test_an_empty_alternative_leaves_no_double_space_and_no_space_before_a_stop() -> None:
    assert say("a [|] b [|], c [|].") == "a b, c."


def test_capitals_are_raised_behind_a_quotation_mark() -> None:
    assert capitalised('"come in," he said.') == '"Come in," he said.'


def test_no_alternative_sticks_to_the_word_before_it() -> None:
    """An opening once read "She loved the valleyvery much"."""
    for path in (*FOLDER.glob("plots/*.txt"), *FOLDER.glob("words/*.txt")):
        for options in re.findall(r"[\w}>]\[([^\[\]]*)\]", path.read_text(encoding="utf-8")):
            assert not re.search(r"(^|\|)[\w{<]", options), f"{path.name}: [{options}]"


@pytest.mark.parametrize("template", ["[a|b", "a]", "{hero", "<rule"])
def test_a_malformed_template_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        parse(template)


@pytest.mark.parametrize("template", ["{nobody}", "<nothing>"])
def test_an_unknown_name_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        say(template)
