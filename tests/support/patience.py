"""More time for the tests of a folder: what they start needs minutes."""

from pathlib import Path

import pytest


def allow_time(items: list[pytest.Item], folder: Path, seconds: float) -> list[pytest.Item]:
    """Give each test of the folder so many seconds. Returns these tests."""
    slow = [each for each in items if folder in each.path.parents]
    for item in slow:
        item.add_marker(pytest.mark.timeout(seconds), append=False)
    return slow
