"""Keeps the texts of a model's control tokens from becoming control tokens.

In: the texts that the model's tokenizer turns into control tokens, and a conversation. Out: the
conversation with placeholders for such texts, and its rendered prompt as pieces: the template's
control tokens as ids, everything else as text. Not known here: the engine, which tokenises the text
between control tokens without looking for them. So a user cannot write the end of a turn.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

# Private-use characters, which stand for a text while a template is rendered.
_PLACEHOLDERS = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
# Shows nothing and joins words; within a control token's text it leaves only text.
WORD_JOINER = "\u2060"


class ControlTokens:
    """The control tokens of a model: the text of each and its id."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = dict(ids)
        self._pattern = re.compile(_pattern_of(self._ids) or r"(?!)")

    def found_in(self, value: Any) -> bool:
        """Return True if a text or a name in this JSON value contains a control token's text."""
        return any(self._pattern.search(text) for text in _texts_in(value))

    def hide_in(self, value: Any) -> tuple[Any, dict[str, str]]:
        """Return the JSON value with a placeholder for each control token's text in it.

        Also returns the text of each placeholder. Most values have none and are returned as is.
        """
        hidden: dict[str, str] = {}  # text → placeholder
        if not self.found_in(value):
            return value, hidden
        used = set(chain.from_iterable(_texts_in(value)))
        free = (chr(code) for code in chain(*_PLACEHOLDERS) if chr(code) not in used)

        def hide(text: str) -> str:
            return self._pattern.sub(
                lambda found: hidden.get(found[0]) or hidden.setdefault(found[0], next(free)), text
            )

        return _with_texts(value, hide), {place: text for text, place in hidden.items()}

    def pieces_of(self, prompt: str, hidden: Mapping[str, str]) -> list[str | int]:
        """Return a rendered prompt as text and the ids of the template's control tokens.

        The first piece is text, perhaps empty.
        """
        places = {ord(place): text for place, text in hidden.items()}
        pieces: list[str | int] = []
        at = 0
        for found in self._pattern.finditer(prompt):
            if at < found.start() or not pieces:
                pieces.append(prompt[at : found.start()].translate(places))
            pieces.append(self._ids[found[0]])
            at = found.end()
        if at < len(prompt) or not pieces:
            pieces.append(prompt[at:].translate(places))
        return pieces

    def break_in(self, value: Any) -> Any:
        """Return the JSON value with an invisible character in each control token's text."""

        def broken(text: str) -> str:
            while self._pattern.search(text):
                text = self._pattern.sub(
                    lambda found: found[0][0] + WORD_JOINER + found[0][1:], text
                )
            return text

        return _with_texts(value, broken) if self.found_in(value) else value


def _pattern_of(texts: Iterable[str]) -> str:
    """Return a pattern for the longest of these texts, as a tree of their common beginnings.

    A model may have a thousand control tokens. Tried one by one at every place of a long text that
    looks like one, they would take seconds.
    """
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[:1], []).append(text[1:])
    can_end = rests.pop("", None) is not None
    branches = [re.escape(first) + _pattern_of(rest) for first, rest in rests.items()]
    if not branches:
        return ""
    if len(branches) == 1 and not can_end:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + "?" * can_end


# The names of JSON schema that only describe a value.
_DESCRIBING = frozenset({"title", "description", "$comment", "default", "examples"})


def broken_tools(value: Any, control: ControlTokens) -> Any:
    """Return tools whose descriptions contain no control token's text.

    Names, and values that a call may have, stay as they are.
    """
    if isinstance(value, list):
        return [broken_tools(each, control) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: control.break_in(each)
        if name in _DESCRIBING and not isinstance(each, dict)  # a property may be named so
        else broken_tools(each, control)
        for name, each in value.items()
    }


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _texts_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts_in(each)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return the JSON value with every text changed, names too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _with_texts(each, change) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_texts(each, change) for each in value]
    return value
