"""The template language of the sentences in the training text.

    [red|blue [and green|]]   an alternative; alternatives nest, and can be empty
    {hero} {He} {a thing}     a slot; a capital letter capitalises it; `a` puts a or an in front
    <sound>                   a rule of words/rules.txt, which is a template, too

A template is parsed once and expanded many times. This module contains no words.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

VOWEL_LETTERS = "aeiou"
SOUNDS_LIKE_CONSONANT = ("uni", "use", "usu", "eu", "one", "once")
SOUNDS_LIKE_VOWEL = ("hour", "honest", "heir", "honour")


class TemplateError(ValueError):
    """A template is malformed, or it names a slot or a rule that does not exist."""


@dataclass(frozen=True, slots=True)
class Slot:
    name: str
    capital: bool
    article: bool


@dataclass(frozen=True, slots=True)
class Rule:
    name: str


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple["Sequence", ...]


Part = str | Slot | Rule | Choice
Sequence = tuple[Part, ...]
Rules = Mapping[str, str]


def with_article(phrase: str) -> str:
    """Put "a" or "an" in front of a noun phrase."""
    word = phrase.lower()
    if word.startswith(SOUNDS_LIKE_VOWEL):
        return f"an {phrase}"
    if word.startswith(SOUNDS_LIKE_CONSONANT) or word[:1] not in VOWEL_LETTERS:
        return f"a {phrase}"
    return f"an {phrase}"


def capitalised(text: str) -> str:
    """Capitalise the first letter, also after an opening quotation mark."""
    for index, character in enumerate(text):
        if character.isalpha():
            return text[:index] + character.upper() + text[index + 1 :]
    return text


def expand(template: str, slots: Mapping[str, str], rules: Rules, rng: random.Random) -> str:
    """Choose alternatives and fill the slots. The result has only single spaces.

    Raises TemplateError if the template is malformed or names an unknown slot or rule.
    """
    text = "".join(_expand(parse(template), slots, rules, rng))
    return re.sub(r" +([,.!?;])", r"\1", re.sub(r" {2,}", " ", text)).strip()


def _expand(
    sequence: Sequence, slots: Mapping[str, str], rules: Rules, rng: random.Random
) -> list[str]:
    out: list[str] = []
    for part in sequence:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Slot):
            out.append(_fill(part, slots))
        elif isinstance(part, Rule):
            if part.name not in rules:
                raise TemplateError(f"there is no rule <{part.name}> in words/rules.txt")
            out += _expand(parse(f"[{rules[part.name]}]"), slots, rules, rng)
        else:
            option = part.options[int(rng.random() * len(part.options))]
            out += _expand(option, slots, rules, rng)
    return out


def _fill(slot: Slot, slots: Mapping[str, str]) -> str:
    if slot.name not in slots:
        raise TemplateError(f"nothing fills the slot {{{slot.name}}}")
    value = slots[slot.name]
    if slot.article:
        value = with_article(value)
    return capitalised(value) if slot.capital else value


@cache
def parse(template: str) -> Sequence:
    """Parse a template. Raises TemplateError if a bracket is missing or left over."""
    sequence, rest = _parse_sequence(template, 0)
    if rest != len(template):
        raise TemplateError(f"unexpected {template[rest]!r} in: {template}")
    return sequence


def _parse_sequence(template: str, start: int) -> tuple[Sequence, int]:
    parts: list[Part] = []
    at = start
    while at < len(template):
        character = template[at]
        if character in "]|":
            break
        if character == "[":
            choice, at = _parse_choice(template, at)
            parts.append(choice)
        elif character == "{":
            end = _closing(template, at, "}")
            parts.append(_parse_slot(template[at + 1 : end]))
            at = end + 1
        elif character == "<":
            end = _closing(template, at, ">")
            parts.append(Rule(template[at + 1 : end]))
            at = end + 1
        else:
            end = at
            while end < len(template) and template[end] not in "[]|{<":
                end += 1
            parts.append(template[at:end])
            at = end
    return tuple(parts), at


def _parse_choice(template: str, start: int) -> tuple[Choice, int]:
    options: list[Sequence] = []
    at = start
    while True:
        sequence, at = _parse_sequence(template, at + 1)
        options.append(sequence)
        if at >= len(template):
            raise TemplateError(f"a [ is never closed in: {template}")
        if template[at] == "]":
            return Choice(tuple(options)), at + 1


def _parse_slot(text: str) -> Slot:
    words = text.split(" ")
    article = words[0].lower() == "a" and len(words) == 2
    capital = words[0][:1].isupper()
    name = words[-1]
    return Slot(name[:1].lower() + name[1:], capital, article)


def _closing(template: str, start: int, bracket: str) -> int:
    end = template.find(bracket, start)
    if end < 0:
        raise TemplateError(f"a {template[start]} is never closed in: {template}")
    return end
