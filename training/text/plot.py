"""Reads the plots in plots/: beats, choices that belong together, and questions.

A file begins with a head: `uses: thing` or `uses: beast` (the main object), `about:` (names of its
subject), `ask:` (question | answers) and `let a, b: x ; y | ...` (slots that are chosen together,
once for the whole story, so that a cause keeps its effect). Then come the beats, separated by blank
lines. The lines of a beat are its alternatives. A beat that begins with `?` is optional, `*` is an
interlude, and `--` begins a paragraph.
"""

from dataclasses import dataclass
from functools import cache

from training.text.lists import FOLDER, lines_of

PARAGRAPH = "--"
INTERLUDE = "*"
OPTIONAL = "?"


@dataclass(frozen=True, slots=True)
class Beat:
    options: tuple[str, ...]
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Let:
    names: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    name: str
    uses: str
    subjects: tuple[str, ...]
    questions: tuple[tuple[str, tuple[str, ...]], ...]
    lets: tuple[Let, ...]
    beats: tuple[Beat, ...]


def split_top(text: str, separator: str = "|") -> tuple[str, ...]:
    """Split a text at the separators outside brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return (*parts, current.strip())


@cache
def plots() -> tuple[Plot, ...]:
    """Return all plots, in the order of their names."""
    return tuple(
        _read(path.stem, lines_of(path)) for path in sorted((FOLDER / "plots").glob("*.txt"))
    )


def _read(name: str, lines: list[str]) -> Plot:
    blank = lines.index("")
    head, body = lines[:blank], lines[blank + 1 :]
    uses = "thing"
    subjects: tuple[str, ...] = ()
    questions: list[tuple[str, tuple[str, ...]]] = []
    lets: list[Let] = []
    for line in head:
        key, rest = (part.strip() for part in line.split(":", 1))
        if key == "uses":
            uses = rest
        elif key == "about":
            subjects = split_top(rest)
        elif key == "ask":
            question, *answers = split_top(rest)
            questions.append((question, tuple(answers)))
        elif key.startswith("let "):
            names = tuple(part.strip() for part in key[4:].split(","))
            choices = tuple(split_top(choice, ";") for choice in split_top(rest))
            if any(len(choice) != len(names) for choice in choices):
                raise ValueError(f"{name}: every choice of `{key}` needs {len(names)} values")
            lets.append(Let(names, choices))
        else:
            raise ValueError(f"{name}: the head of a plot has no `{key}`")
    return Plot(name, uses, subjects, tuple(questions), tuple(lets), tuple(_beats(body)))


def _beats(lines: list[str]) -> list[Beat]:
    beats: list[Beat] = []
    options: list[str] = []
    for line in [*lines, ""]:
        if line and line != PARAGRAPH:
            options.append(line)
            continue
        if options:
            is_optional = options[0].startswith(OPTIONAL)
            beats.append(Beat(tuple(o.removeprefix("? ") for o in options), is_optional))
            options = []
        if line == PARAGRAPH:
            beats.append(Beat((PARAGRAPH,)))
    return beats
