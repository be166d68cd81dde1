"""Regular expressions that llama.cpp would bind to the wrong texts."""

import pytest

from penstock.engine.patterns import is_bound_wrongly


@pytest.mark.parametrize(
    "pattern",
    [
        r'^a"[0-9]$',
        r"^C:\\[a-z]+$",
        r"^a\n[0-9]$",
        "^a\n[0-9]$",
        r"^\t",
        r"^a\x22[0-9]$",
        r"^a\u0022[0-9]$",
        r'^a["]b$',
        r'^("|x)[0-9]$',
        r"^a[\\]b$",
    ],
)
def test_a_pattern_that_demands_an_escaped_character_is_found(pattern: str) -> None:
    assert is_bound_wrongly(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^[a-z]+$",
        r'^[^"]*$',
        r'^[^"\\]+$',
        r"""^["'][a-z]+["']$""",
        r"^\d{4}-\d{2}-\d{2}$",
        r"^\s*\S+\.[a-z]{2,}$",
        r"^[\w.]+@[\w.]+$",
        r"^[\n\t ]*$",
    ],
)
def test_other_patterns_are_bound(pattern: str) -> None:
    assert not is_bound_wrongly(pattern)
