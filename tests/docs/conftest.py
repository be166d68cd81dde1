"""A page's working directory and its servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.running import PageRun


@pytest.fixture
def run(tmp_path: Path) -> Iterator[PageRun]:
    """A place to run the blocks of one page. Its servers end with the test."""
    directory, aside = tmp_path / "page", tmp_path / "aside"
    directory.mkdir()
    aside.mkdir()
    run = PageRun(directory, aside)
    try:
        yield run
    finally:
        run.close()
