"""Reads the word lists in words/ and the plots in plots/: text files with an entry per line."""

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("names-she", "names-he", "names-animal")
"""The lists of names."""


def lines_of(path: Path) -> list[str]:
    """Return all lines except comments, without trailing spaces. Blank lines are kept."""
    lines = (line.rstrip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if not line.startswith("#")]


@cache
def words(name: str) -> tuple[str, ...]:
    """Return the entries of words/NAME.txt, one per line."""
    return tuple(line for line in lines_of(FOLDER / "words" / f"{name}.txt") if line)


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the rows of words/NAME.txt, whose columns are separated by ` | `."""
    return tuple(tuple(cell.strip() for cell in row.split(" | ")) for row in words(name))


@cache
def rules() -> dict[str, str]:
    """Return the rules of words/rules.txt (`name: one | two`) as templates without brackets."""
    pairs = (line.split(":", 1) for line in words("rules"))
    return {name.strip(): re.sub(r" *\| *", "|", body.strip()) for name, body in pairs}


@cache
def sections(name: str) -> dict[str, tuple[str, ...]]:
    """Split words/NAME.txt at its `== title` lines, and return the lines below each title."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in words(name):
        if line.startswith("== "):
            title = line[3:].strip()
        else:
            found.setdefault(title, []).append(line)
    return {key: tuple(value) for key, value in found.items()}
