"""Prometheus and promtool, from Debian's package `prometheus`.

Without them the tests skip and say what to install; with PENSTOCK_REQUIRE_PROMETHEUS=1, as in CI,
they fail.
"""

import os
import shutil

import pytest

MISSING = "no {} found: install it (Debian, Ubuntu: apt-get install prometheus)"


def find(name: str) -> str:
    """Return the path of the program; skip or fail the test if it is not installed."""
    program = shutil.which(name)
    if program is None and os.environ.get("PENSTOCK_REQUIRE_PROMETHEUS") == "1":
        pytest.fail(MISSING.format(name))
    return program or pytest.skip(MISSING.format(name))


@pytest.fixture(scope="session")
def prometheus() -> str:
    return find("prometheus")


@pytest.fixture(scope="session")
def promtool() -> str:
    return find("promtool")
