"""Every test that docs/behavior.md, docs/security.md or docs/clients.md names must exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("behavior.md", "security.md", "clients.md")
]
NAMED = sorted({n for page in PAGES for n in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)})


def test_there_are_promises() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_promise_has_its_test(file: str, name: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    assert not name or re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE)
